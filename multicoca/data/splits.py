"""Which items a run trains on, which split it evaluates on, and which items it does not use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multicoca.data.annotations import TEST, TRAIN, VALIDATION
from multicoca.data.sample import Item
from multicoca.data.sources import Listing

COMPOSITION = "composition"  # held-out combinations of the shapes world


def training_items(listing: Listing, modalities: Iterable[str]) -> dict[str, Sequence[Item]]:
    """Returns the training items of each modality that have captions.

    Raises:
        ValueError: a modality has none, or several modalities read an item that names none.
    """
    items = listing.with_captions(TRAIN)
    for modality in modalities:
        if items.get(modality):
            continue
        without = len(listing.of(TRAIN).get(modality, ()))
        if without:
            raise ValueError(
                f"the {without} {modality} items of the split train have labels but no captions; no objective of this "
                "version uses them, contrastive learning and captioning need text. Add captions, or leave the modality "
                "out"
            )
        reasons = [p for p in listing.problems if p.split in (TRAIN, "") and p.modality in (modality, "")]
        first = f". The first of {len(reasons)} problems: {reasons[0].file}: {reasons[0].reason}" if reasons else ""
        raise ValueError(f"there are no training items for the modality '{modality}'; add some or leave it out{first}")
    refuse_ambiguous(listing)
    return {modality: items[modality] for modality in modalities}


def refuse_ambiguous(listing: Listing) -> None:
    """Checks that it is known of every item which modality reads it.

    Raises:
        ValueError: it is not, for some.
    """
    if listing.ambiguous:
        first = listing.ambiguous[0]
        raise ValueError(
            f"{len(listing.ambiguous)} items can be read by several modalities; the first: {first.file}: {first.reason}"
        )


def evaluation_splits(listing: Listing, modalities: Iterable[str]) -> dict[str, str]:
    """Returns the split that each modality is evaluated on: the test split or, where it has none, the validation split.

    Modalities without either are left out.
    """
    found = {}
    for modality in modalities:
        for split in (TEST, VALIDATION):
            if listing.listed.get(split, {}).get(modality):
                found[modality] = split
                break
    return found


def left_aside(listing: Listing, modalities: Sequence[str]) -> list[str]:
    """Returns a sentence for each kind of item that a run does not use, with how many there are."""
    used = evaluation_splits(listing, modalities)
    lines = [f"{modality} is left out: {reason}" for modality, reason in listing.skipped.items()]
    items = listing.with_captions(TRAIN)
    for modality in modalities:
        without = len(listing.of(TRAIN).get(modality, ())) - len(items.get(modality, ()))
        if without:
            lines.append(
                f"{without} {modality} items of the split train have labels but no captions; no objective of this "
                "version uses them, so training leaves them out"
            )
    for split, counts in listing.listed.items():
        unused = [
            f"{count} {modality}"
            for modality, count in counts.items()
            if modality in modalities and split not in (TRAIN, COMPOSITION, used.get(modality))
        ]
        if unused:
            lines.append(
                f"the split '{split}' is not used: {', '.join(unused)} items; a run trains on train and evaluates on "
                "test, or on validation where there is no test"
            )
    return lines
