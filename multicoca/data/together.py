"""Several sources at once: the items of each are a stream of their own, with its share of every batch.

An item's key begins with the name of its source, so that two sources may use the same keys.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

from multicoca.data.sample import Item
from multicoca.data.sources import Listing, Source
from multicoca.modality import Processor


@dataclass(frozen=True)
class Stream:
    """The items of one modality from one source.

    Attributes:
        name: of the source, "" where there is but one.
        items: its items.
        repeats: how often each of them counts.
    """

    name: str
    items: Sequence[Item]
    repeats: float = 1.0


class Joined(Sequence[Item]):
    """The items of one modality from several sources, one after the other; keys begin with the source's name."""

    def __init__(self, streams: Sequence[Stream]):
        self.streams = tuple(streams)
        self._ends = list(accumulate(len(stream.items) for stream in streams))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[own] for own in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return self.item(number, index - (self._ends[number - 1] if number else 0))

    def item(self, number: int, index: int) -> Item:
        """Returns an item of a stream."""
        stream = self.streams[number]
        item = stream.items[index]
        return replace(item, key=f"{stream.name}/{item.key}")


class Together:
    """Several sources at once.

    Args:
        sources: by name.
        repeats: how often the items of a source count in training; 1 for those that are not named.

    Raises:
        ValueError: there is no source, or a number of repeats is not above 0 or of no source.
    """

    def __init__(self, sources: Mapping[str, Source], repeats: Mapping[str, int | float] | None = None):
        self.sources, self.repeats = dict(sources), dict(repeats or {})
        if not self.sources:
            raise ValueError("data.source.sources is empty; name at least one source")
        for name, number in self.repeats.items():
            if name not in self.sources:
                raise ValueError(f"data.source.repeats names '{name}'; the sources are {', '.join(self.sources)}")
            if not number > 0:
                raise ValueError(f"data.source.repeats.{name} is {number}; expected a number above 0")

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Lists all sources; the items of each are a stream of their own."""
        listing = Listing()
        streams: dict[str, dict[str, list[Stream]]] = {}
        captioned: dict[str, dict[str, list[Stream]]] = {}
        for name, source in self.sources.items():
            own = source.list_items(processors, seed)
            listing.problems.extend(replace(problem, key=f"{name}/{problem.key}") for problem in own.problems)
            listing.ambiguous.extend(replace(problem, key=f"{name}/{problem.key}") for problem in own.ambiguous)
            listing.roots.extend(own.roots)
            listing.skipped.update(own.skipped)
            for split, counts in own.listed.items():
                total = listing.listed.setdefault(split, {})
                for modality, count in counts.items():
                    total[modality] = total.get(modality, 0) + count
            repeats = float(self.repeats.get(name, 1))
            for split in own.splits:
                for modality, items in own.of(split).items():
                    streams.setdefault(split, {}).setdefault(modality, []).append(Stream(name, items, repeats))
                for modality, items in own.with_captions(split).items():
                    if items:
                        captioned.setdefault(split, {}).setdefault(modality, []).append(Stream(name, items, repeats))
        elsewhere = {modality for counts in listing.listed.values() for modality in counts}
        for modality in elsewhere & set(listing.skipped):
            del listing.skipped[modality]
        for split, by_modality in streams.items():
            listing.splits[split] = {modality: Joined(parts) for modality, parts in by_modality.items()}
            for modality, items in listing.splits[split].items():
                parts = captioned.get(split, {}).get(modality, [])
                own_items: Sequence[Item] = Joined(parts) if parts else ()
                if len(own_items) < len(items):
                    listing.captioned.setdefault(split, {})[modality] = own_items
        return listing
