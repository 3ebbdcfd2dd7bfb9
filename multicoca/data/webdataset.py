"""WebDataset shards as a source: the tars of img2dataset and video2dataset, local or behind any fsspec URL.

A sample is all files of one key: media, `.txt`, `.json` (caption or list of captions, and if wanted `label`, `split`,
`modality` and a `key` of its own) and `.cls`; it needs a caption or a label. A list of items is a list of places; an
item is made when it is asked for, so that the number of items costs eight bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np

from multicoca.data.annotations import TEST, TRAIN, decode_text, parse_json, parse_split
from multicoca.data.sample import Item, Problem
from multicoca.data.shard_index import ShardIndex, index_shards, opened
from multicoca.data.shard_scan import TEXT_KEYS
from multicoca.data.sources import Listing, ambiguous, check_share, readers_by_suffix
from multicoca.data.storage import Member, find_files
from multicoca.modality import Processor

_NOT_EXTRA = (*TEXT_KEYS, "label", "split", "modality", "key")
_ROW_BITS = 32  # of a place: the shard's number above, the row of its index below


class WebDataset:
    """Shards of samples.

    Args:
        root: shards: a folder, file, glob or brace pattern such as "shards/{000..009}.tar", or a list of them.
        test_share: share of the samples that is kept for evaluation where none says `split`; which ones is a pure
            function of their keys.
        split: takes all samples for one split, for example "train".

    Raises:
        ValueError: there is no such shard.
    """

    def __init__(self, root: str | Path | Sequence[str], test_share: float = 0.1, split: str | None = None):
        self.test_share, self.split = check_share(test_share), parse_split(split) or None
        self.shards = find_files(root if isinstance(root, (str, list, tuple)) else str(root), ".tar")

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Indexes the shards that are not, and sorts their samples into splits and modalities.

        Raises:
            ValueError: no sample can be used.
        """
        del seed  # the split depends on keys alone
        files, shards = tuple(index_shards(self.shards)), tuple(self.shards)
        listing, names, splits = Listing(), list(processors), [self.split] if self.split else [TRAIN, TEST]
        tables = []
        for number, (file, shard) in enumerate(zip(files, shards, strict=True)):
            index = opened(file, shard)
            for reason in index.about["problems"]:
                listing.problems.append(Problem(PurePosixPath(shard).name, shard, reason, self.split or ""))
            split_of = self._split_of(index, splits)
            tables.append(_media(index, number, processors, splits, split_of, listing))
        table = np.concatenate(tables)
        items = ShardItems(files, shards, table["place"], "")
        _refuse_repeated_keys(table, items, names, splits, listing)
        for number, split in enumerate(splits):
            for own, modality in enumerate(names):
                here = (table["split"] == number) & (table["modality"] == own)
                if here.any():
                    listing.listed.setdefault(split, {})[modality] = int(here.sum())
                places = table["place"][here & table["usable"]]
                if len(places):
                    listing.splits.setdefault(split, {})[modality] = ShardItems(files, shards, places, modality)
                captioned = table["place"][here & table["usable"] & table["captioned"]]
                if len(captioned) < len(places):
                    own_items = ShardItems(files, shards, captioned, modality)
                    listing.captioned.setdefault(split, {})[modality] = own_items
        if not listing.splits:
            problem = listing.problems[0] if listing.problems else None
            first = f"; the first problem: {problem.file}: {problem.reason}" if problem else ""
            raise ValueError(f"there is no usable sample in {len(shards)} shards from {shards[0]} on{first}")
        return listing

    def _split_of(self, index: ShardIndex, splits: list[str]) -> np.ndarray:
        """Returns the split of each sample, a place in `splits`: the source's, the sample's own, or by its key."""
        arrays = index.arrays
        if self.split is not None:
            return np.zeros(len(arrays["split"]), int)
        splits.extend(split for split in index.about["splits"] if split and split not in splits)
        said = np.array([splits.index(split) if split else -1 for split in index.about["splits"]], int)
        by_key = np.where(arrays["hash"] / 2.0**64 < self.test_share, splits.index(TEST), splits.index(TRAIN))
        return np.where(said[arrays["split"]] < 0, by_key, said[arrays["split"]])


_ROW = np.dtype([("place", np.int64), ("hash", np.uint64), ("split", np.int32), ("modality", np.int32),
                 ("usable", np.bool_), ("captioned", np.bool_)])  # fmt: skip
_UNREAD, _AMBIGUOUS = -1, -2  # in the place of a modality's number


def _media(
    index: ShardIndex,
    number: int,
    processors: Mapping[str, Processor],
    splits: Sequence[str],
    split_of: np.ndarray,
    listing: Listing,
) -> np.ndarray:
    """Returns a row for each file of a shard that a modality reads, and notes what cannot be used."""
    arrays, names = index.arrays, list(processors)
    bad = {int(sample): reason for sample, reason in index.about["reasons"].items()}
    modality = _modalities(index, processors)
    rows = np.flatnonzero(modality >= 0)
    sample = arrays["sample"][rows]
    table = np.empty(len(rows), _ROW)
    table["place"], table["hash"] = (number << _ROW_BITS) + rows, arrays["hash"][sample]
    table["split"], table["modality"] = split_of[sample], modality[rows]
    table["captioned"] = arrays["captions"][sample] > 0
    for row in np.flatnonzero(modality == _AMBIGUOUS).tolist():
        own, member = int(arrays["sample"][row]), index.member(row)
        suffix = PurePosixPath(str(member)).suffix.lower()
        reason = bad.get(own) or ambiguous(suffix, readers_by_suffix(processors)[suffix])
        listing.problems.append(Problem(index.record(own)["key"], str(member), reason, splits[split_of[own]]))
        listing.ambiguous.extend([] if own in bad else listing.problems[-1:])
        counts = listing.listed.setdefault(splits[split_of[own]], {})
        counts["unknown"] = counts.get("unknown", 0) + 1
    is_first = np.zeros(len(rows), bool)
    is_first[np.unique(sample.astype(np.int64) * len(names) + modality[rows], return_index=True)[1]] = True
    table["usable"] = is_first & ~np.isin(sample, np.array(list(bad), np.uint32))
    for row in np.flatnonzero(~table["usable"]).tolist():
        own, name = int(sample[row]), names[table["modality"][row]]
        reason = bad.get(own) or f"its sample has more than one file of the modality {name}; the first is used"
        file, key = str(index.member(int(rows[row]))), index.record(own)["key"]
        listing.problems.append(Problem(key, file, reason, splits[split_of[own]], name))
    readable = ", ".join(sorted({suffix for processor in processors.values() for suffix in processor.suffixes}))
    for own in np.setdiff1d(np.arange(len(split_of)), arrays["sample"][modality != _UNREAD]).tolist():
        key, split = index.record(own)["key"], splits[split_of[own]]
        media = arrays["suffix"][arrays["sample"] == own].tolist()
        has = ", ".join("." + index.about["suffixes"][suffix] for suffix in media) or "none but its description"
        said = index.about["modalities"][arrays["modality"][own]]
        of = f" of '{said}', its modality" if said else ""
        reason = bad.get(own) or f"it has no media file{of}; its files: {has}; readable suffixes: {readable}"
        listing.problems.append(Problem(key, f"{index.shard}::{key}", reason, split))
        counts = listing.listed.setdefault(split, {})
        counts["unknown"] = counts.get("unknown", 0) + 1
    return table


def _modalities(index: ShardIndex, processors: Mapping[str, Processor]) -> np.ndarray:
    """Returns which modality reads each media file: the one that its sample names, or by its suffix.

    The last ending counts. Beside x.jpg, x.mask.png is no other picture of the sample but something about it.
    """
    names, arrays = list(processors), index.arrays
    suffixes = [PurePosixPath(f"x.{suffix}").suffix.lower() for suffix in index.about["suffixes"]]
    by_suffix = readers_by_suffix(processors)
    numbers = []
    for suffix in suffixes:
        readers = by_suffix.get(suffix, ())
        numbers.append(names.index(readers[0]) if len(readers) == 1 else _AMBIGUOUS if readers else _UNREAD)
    found = np.array(numbers, int)[arrays["suffix"]]
    for code, name in enumerate(index.about["modalities"]):
        if name:
            can_read = np.array([name in names and suffix in processors[name].suffixes for suffix in suffixes], bool)
            is_named = arrays["modality"][arrays["sample"]] == code
            chosen = np.where(can_read[arrays["suffix"]], names.index(name) if name in names else _UNREAD, _UNREAD)
            found = np.where(is_named, chosen, found)
    has_dot = np.array(["." in suffix for suffix in index.about["suffixes"]], bool)[arrays["suffix"]]
    own = arrays["sample"].astype(np.int64) * (len(names) + 2) + found
    return np.where(has_dot & np.isin(own, own[~has_dot & (found != _UNREAD)]), _UNREAD, found)


def _refuse_repeated_keys(
    table: np.ndarray, items: ShardItems, names: Sequence[str], splits: Sequence[str], listing: Listing
) -> None:
    """Marks all but the first of the items of a modality that have the same key, and notes them."""
    for modality, name in enumerate(names):
        rows = np.flatnonzero(table["usable"] & (table["modality"] == modality))
        order = rows[np.argsort(table["hash"][rows], kind="stable")].tolist()
        first = 0
        is_repeated = table["hash"][order][1:] == table["hash"][order][:-1]
        for place in np.flatnonzero(is_repeated).tolist():
            first = first if place and is_repeated[place - 1] else place
            one, other = items[order[first]], items[order[place + 1]]
            if one.key == other.key:  # and not only its hash
                table["usable"][order[place + 1]] = False
                reason = f"its key '{other.key}' occurs twice, first in {one.file}; keys must be unique"
                split = splits[table["split"][order[place + 1]]]
                listing.problems.append(Problem(other.key, str(other.file), reason, split, name))


class ShardItems(Sequence[Item]):
    """Items of one modality, made when they are asked for.

    Args:
        files: the indexes.
        shards: their shards.
        places: of the items, shard and row.
        modality: of all of them.
    """

    def __init__(self, files: tuple[Path, ...], shards: tuple[str, ...], places: np.ndarray, modality: str):
        self.files, self.shards, self.places, self.modality = files, shards, places, modality

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> ShardItems: ...
    def __getitem__(self, index: int | slice) -> Item | ShardItems:
        if isinstance(index, slice):
            return ShardItems(self.files, self.shards, self.places[index], self.modality)
        shard, row = divmod(int(self.places[index]), 1 << _ROW_BITS)
        own = opened(self.files[shard], self.shards[shard])
        sample = int(own.arrays["sample"][row])
        record = own.record(sample)
        extra = _Extra(own.described(sample))
        return Item(record["key"], own.member(row), self.modality, tuple(record["texts"]), record["label"], extra)


class _Extra(Mapping[str, Any]):
    """What else a sample's .json says, read when somebody looks."""

    def __init__(self, member: Member | None):
        self._member = member
        self._values: dict[str, Any] | None = None

    def _read(self) -> dict[str, Any]:
        if self._values is None:
            said = parse_json(decode_text(self._member.read())) if self._member else {}
            said = said if isinstance(said, dict) else {}
            self._values = {name: value for name, value in said.items() if name not in _NOT_EXTRA}
        return self._values

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
