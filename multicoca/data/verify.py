"""Reads all items of a source once, says what there is and what is broken: `multicoca data verify`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from multicoca.data.loader import begin_worker
from multicoca.data.sample import Item, Problem, sample_of
from multicoca.data.sources import Listing
from multicoca.isolated import decode_timeout
from multicoca.modality import Processor, Remarker, UnreadableFileError
from multicoca.reading import refuse_broken
from multicoca.terminal import progress
from multicoca.text.scripts import count_words

_CHUNK = 32  # items that a worker reads at a time
_CHANGING = re.compile(r"b?'[^']*'|b?\"[^\"]*\"|\S*/\S+|[-+]?\d[\d.,]*")  # what differs between reasons of one kind


@dataclass(frozen=True)
class Checked:
    """What was found out about one item.

    Attributes:
        key: its key.
        texts: its captions.
        size: of its file, in bytes.
        shapes: of the parts of its sample.
        remarks: of its modality on it.
        problem: why it cannot be used.
    """

    key: str
    texts: tuple[str, ...]
    size: int = 0
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    remarks: tuple[str, ...] = ()
    problem: Problem | None = None


class _Check(Dataset):
    """Checks an item in a worker."""

    def __init__(self, items: Sequence[Item], processor: Processor, split: str):
        self.items, self.processor, self.split = items, processor, split

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Checked:
        item = self.items[index]
        try:
            size = item.file.stat().st_size if isinstance(item.file, Path) else item.file.size
            raw = item.decode(self.processor)
            sample = sample_of(raw, self.processor, False)
            with refuse_broken():
                remarks = tuple(self.processor.remarks(raw)) if isinstance(self.processor, Remarker) else ()
        except (UnreadableFileError, OSError) as error:
            problem = Problem(item.key, str(item.file), str(error), self.split, item.modality)
            return Checked(item.key, item.texts, problem=problem)
        shapes = tuple((name, tuple(part.shape)) for name, part in sample.items())
        return Checked(item.key, item.texts, size, shapes, remarks)


def verify(
    listing: Listing,
    processors: Mapping[str, Processor],
    num_workers: int,
    count_tokens: Callable[[str], int] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Checks all items.

    Args:
        listing: of a source.
        processors: who reads them.
        num_workers: processes that read.
        count_tokens: gives the number of tokens of a text.

    Returns:
        By split and modality ("unknown" where a line or sample has none): "listed", "readable", "bytes", "shapes",
        "captions", "remarks" (number of readable files with each), "repeated_keys", "broken" and "broken_by_kind".
    """
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for split in dict.fromkeys([*listing.splits, *listing.listed, *(problem.split for problem in listing.problems)]):
        known = [problem for problem in listing.problems if problem.split == split]
        modalities = [*listing.of(split), *listing.listed.get(split, {}), *(p.modality or "unknown" for p in known)]
        for modality in dict.fromkeys(modalities):
            problems = [problem for problem in known if (problem.modality or "unknown") == modality]
            found: Iterable[Checked] = ()
            if modality in listing.of(split):
                data = _Check(listing.of(split)[modality], processors[modality], split)
                begin = partial(begin_worker, decode_timeout())
                chunks = DataLoader(
                    data, batch_size=_CHUNK, num_workers=num_workers, collate_fn=list, worker_init_fn=begin
                )
                found = _shown(chunks, len(data), f"reading {split} {modality}")
            listed = listing.listed.get(split, {}).get(modality, 0)
            results.setdefault(split, {})[modality] = _summary(found, problems, listed, count_tokens)
    return results


def _shown(chunks: Iterable[list[Checked]], total: int, desc: str) -> Iterator[Checked]:
    """Yields the rows of all chunks and shows how far it is."""
    with progress(total=total, desc=desc, leave=False) as bar:
        for chunk in chunks:
            for row in chunk:
                bar.update()
                yield row


def _summary(
    found: Iterable[Checked], problems: list[Problem], listed: int, count_tokens: Callable[[str], int] | None
) -> dict[str, Any]:
    problems, keys, total, readable = list(problems), Counter(problem.key for problem in problems), 0, 0
    shapes: dict[str, set[tuple[int, ...]]] = {}
    counts, words, tokens = [], [], []
    remarks: Counter[str] = Counter()
    for row in found:
        keys[row.key] += 1
        counts.append(len(row.texts))
        words.extend(count_words(text) for text in row.texts)
        tokens.extend(count_tokens(text) for text in row.texts if count_tokens is not None)
        if row.problem is not None:
            problems.append(row.problem)
            continue
        readable, total = readable + 1, total + row.size
        remarks.update({_kind(remark) for remark in row.remarks})
        for name, shape in row.shapes:
            shapes.setdefault(name, set()).add(shape)
    kinds = Counter(_kind(problem.reason) for problem in problems)
    return {
        "listed": listed,
        "readable": readable,
        "bytes": total,
        "shapes": {name: _range_of(own) for name, own in shapes.items()},
        "captions": {
            "count": int(sum(counts)),
            "of_an_item": _spread(counts),
            "words": _spread(words),
            **({"tokens": _spread(tokens)} if count_tokens is not None else {}),
        },
        "remarks": dict(remarks.most_common()),
        "repeated_keys": sum(count - 1 for count in keys.values()),
        "broken": [{"key": p.key, "file": p.file, "reason": p.reason, "kind": _kind(p.reason)} for p in problems],
        "broken_by_kind": dict(kinds.most_common()),
    }


def _kind(reason: str) -> str:
    """Returns a reason without names and numbers."""
    return _CHANGING.sub("...", reason)


def _spread(numbers: Sequence[int]) -> list[float]:
    """Returns least, median and most."""
    return [float(value) for value in np.quantile(numbers, (0, 0.5, 1))] if numbers else []


def _range_of(shapes: set[tuple[int, ...]]) -> str:
    """Returns for example "3 x 64 x 64", or "12-1024 x 3" where sizes differ."""
    if len({len(shape) for shape in shapes}) > 1:
        return "of different numbers of dimensions"
    sizes = [(min(own), max(own)) for own in zip(*shapes, strict=True)]
    return " x ".join(str(low) if low == high else f"{low}-{high}" for low, high in sizes) or "a number"
