"""Your own data: a folder with `metadata.jsonl`, or a JSONL, CSV or TSV manifest; modalities may be mixed.

A line holds `file_name` (relative to the folder), `text` (a string or a list of strings), and if wanted
`label`, `split` (train, validation or test), `modality` (where two modalities read the same suffix) and `key`; other
usual names of columns are in `multicoca.data.manifest`. Lines of one file are one item with all their captions. The
form is Hugging Face's imagefolder. Whatever cannot be used is a `Problem` with its reason; nothing is dropped silently.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from multicoca.data.fields import TEST, TRAIN, captions, clean_text, shorten, split_name, word
from multicoca.data.manifest import SUFFIXES, Line, read_lines
from multicoca.data.order import keyed_number
from multicoca.data.sample import Item, Problem
from multicoca.modality import Processor, UnreadableFileError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")


@dataclass(frozen=True)
class Listing:
    """What a source offers.

    Attributes:
        splits: items by split and modality; a sequence may make its items only when they are asked for.
        problems: what cannot be used.
        listed: number of items by split and modality, the unusable ones included.
        captioned: the items with captions by split and modality, where there are others.
    """

    splits: dict[str, dict[str, Sequence[Item]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    listed: dict[str, dict[str, int]] = field(default_factory=dict)
    captioned: dict[str, dict[str, Sequence[Item]]] = field(default_factory=dict)

    def of(self, split: str) -> dict[str, Sequence[Item]]:
        """Returns the items of a split by modality; empty when there is no such split."""
        return self.splits.get(split, {})

    def with_captions(self, split: str) -> dict[str, Sequence[Item]]:
        """Returns the items of a split that have captions, by modality."""
        return {**self.of(split), **self.captioned.get(split, {})}

    def count(self, split: str, modality: str) -> None:
        """Counts one more listed item."""
        counts = self.listed.setdefault(split, {})
        counts[modality or "unknown"] = counts.get(modality or "unknown", 0) + 1


@runtime_checkable
class Source(Protocol):
    """Where training and evaluation items come from."""

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Lists all items, for the given modalities."""
        ...


class Folder:
    """A folder with `metadata.jsonl`, `metadata.csv` or `metadata.tsv`, or such a manifest itself.

    Args:
        root: the folder, or the manifest file.
        test_share: share of the items that is kept for evaluation where no line says `split`; which ones is a
            pure function of their keys, so that new files never move old ones.

    Raises:
        ValueError: there is no such folder or no metadata in it.
    """

    def __init__(self, root: str | Path, test_share: float = 0.1):
        self.test_share = check_share(test_share)
        self.manifest = _find_manifest(Path(root).expanduser())

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Reads the metadata and sorts its lines into splits and modalities.

        Raises:
            ValueError: the manifest cannot be used as a whole.
        """
        del seed  # the split depends on keys alone
        listing, entries = Listing(), {}
        broken: list[_Entry] = []
        for line in read_lines(self.manifest):
            entry = _entry(line)
            if entry.reason:
                broken.append(entry)
            else:
                place = os.path.normpath(entry.name), entry.key if "key" in entry.given else ""
                entries[place] = _joined(entries[place], entry) if place in entries else entry
        items: dict[str, dict[str, list[Item]]] = {}
        first_lines: dict[tuple[str, str], int] = {}
        for entry in sorted([*entries.values(), *broken], key=lambda entry: entry.lines[0]):
            split, modality = (
                self._split_of(entry),
                entry.value("modality") or modality_by_suffix(entry.name, processors),
            )
            listing.count(split, modality)
            reason = entry.reason or _unusable(self.manifest.parent / entry.name, modality, processors)
            if not reason and (modality, entry.key) in first_lines:
                first = first_lines[modality, entry.key]
                reason = f"its key '{entry.key}' occurs twice, first in line {first}; keys must be unique"
            if reason:
                listing.problems.append(self._problem(entry, reason, split, modality))
            else:
                first_lines[modality, entry.key] = entry.lines[0]
                items.setdefault(split, {}).setdefault(modality, []).append(entry.item(self.manifest.parent, modality))
        listing.splits.update(items)
        for split, by_modality in items.items():
            for modality, found in by_modality.items():
                captioned = [item for item in found if item.texts]
                if len(captioned) < len(found):
                    listing.captioned.setdefault(split, {})[modality] = captioned
        return _distinct(listing)

    def _split_of(self, entry: _Entry) -> str:
        by_key = keyed_number("split", entry.key) / 2**64 < self.test_share
        return entry.value("split") or (TEST if by_key else TRAIN)

    def _problem(self, entry: _Entry, reason: str, split: str, modality: str) -> Problem:
        file = self.manifest.parent / entry.name if entry.name else self.manifest
        lines = "line " + str(entry.lines[0]) if len(entry.lines) == 1 else f"lines {_numbers(entry.lines)}"
        return Problem(entry.key, str(file), f"{reason} ({self.manifest.name}, {lines})", split, modality)


@dataclass
class _Entry:
    """What one or several lines say about a file.

    Attributes:
        name: of the file, as the first line writes it.
        key: of the item.
        lines: their numbers.
        texts: all captions.
        given: label, split, modality and key where they are given, each with the number of its line.
        extra: what else is known; the first line that says something counts.
        reason: why it cannot be used, or "".
    """

    name: str
    key: str
    lines: list[int]
    texts: list[str]
    given: dict[str, tuple[str, int]]
    extra: dict[str, Any]
    reason: str = ""

    def value(self, name: str) -> str:
        """Returns what is given, or ""."""
        return self.given[name][0] if name in self.given else ""

    def item(self, folder: Path, modality: str) -> Item:
        """Returns the item."""
        return Item(self.key, folder / self.name, modality, tuple(self.texts), self.value("label") or None, self.extra)


def _entry(line: Line) -> _Entry:
    """Takes in a line; its `reason` says why it cannot be used."""
    entry = _Entry("", f"line {line.number}", [line.number], [], {}, line.extra, line.reason)
    try:
        name = line.values.get("file_name", "")
        if not isinstance(name, str):
            raise UnreadableFileError(f"its file_name is {shorten(name)}; expected a string")
        clean_text("file_name", name)
        entry.name, entry.key = name, name or entry.key
        for known in ("label", "modality", "key"):
            value = word(known, line.values.get(known))
            if value:
                entry.given[known] = value, line.number
        split = split_name(line.values.get("split"))
        if split:
            entry.given["split"] = split, line.number
        entry.key = entry.value("key") or entry.key
        entry.texts = captions("text", line.values.get("text"))
        if not entry.texts and "label" not in entry.given:
            raise UnreadableFileError("it has no caption and no label: text is empty; expected a string or a list")
    except UnreadableFileError as error:
        entry.reason = entry.reason or str(error)
    return entry


def _joined(entry: _Entry, other: _Entry) -> _Entry:
    """Adds another line of the same file; `reason` says where the two disagree."""
    entry.lines += other.lines
    entry.texts = list(dict.fromkeys([*entry.texts, *other.texts]))
    for name, (value, line) in other.given.items():
        before, first = entry.given.setdefault(name, (value, line))
        if before != value and not entry.reason:
            entry.reason = (
                f"lines {first} and {line} give this file the {name} '{before}' and '{value}'; "
                "give one, or give each line a key of its own"
            )
    entry.extra = {**other.extra, **entry.extra}
    return entry


def _distinct(listing: Listing) -> Listing:
    """Adds the line to keys of problems that would be taken for one, so that each is a line of the ledger."""
    seen: set[tuple[str, str]] = set()
    for number, problem in enumerate(listing.problems):
        if (problem.file, problem.key) in seen:
            listing.problems[number] = problem = replace(
                problem, key=f"{problem.key} ({problem.reason.rsplit(', ')[-1]}"
            )
        seen.add((problem.file, problem.key))
    return listing


def _numbers(lines: Sequence[int]) -> str:
    """Returns for example "3, 4 and 3 more"."""
    return ", ".join(map(str, lines[:5])) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")


def check_share(test_share: float) -> float:
    """Returns the share, or says that it is none."""
    if not 0 <= test_share < 1:
        raise ValueError(f"data.source.test_share is {test_share}; expected a share from 0 to below 1")
    return test_share


def _find_manifest(root: Path) -> Path:
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise ValueError(f"the manifest {root} is a '{root.suffix}' file; expected .jsonl, .csv or .tsv")
        return root
    if not root.is_dir():
        raise ValueError(f"data.root is {root}, which does not exist; give a folder or a .jsonl, .csv or .tsv manifest")
    for name in METADATA_NAMES:
        if (root / name).is_file():
            return root / name
    raise ValueError(
        f"{root} holds no metadata.jsonl, metadata.csv or metadata.tsv; write one line per file, "
        'for example {"file_name": "photo.jpg", "text": "a red chair"}'
    )


def _unusable(file: Path, modality: str, processors: Mapping[str, Processor]) -> str:
    """Says why no modality can read a file, or ""."""
    if modality in processors:
        return _missing(file)
    readable = ", ".join(sorted({suffix for processor in processors.values() for suffix in processor.suffixes}))
    what = (
        f"modality '{modality}' is not among {', '.join(processors)}"
        if modality
        else f"suffix '{file.suffix}' is unknown"
    )
    return f"{what}; readable suffixes: {readable}"


def _missing(file: Path) -> str:
    """Says why there is no file to read, or ""."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return "the file does not exist"
    except (OSError, ValueError) as error:  # ValueError: no name of a file holds a null byte
        return f"the file cannot be found: {error}"
    return "" if stat.S_ISREG(mode) else "it is a folder or a device, not a file"


def modality_by_suffix(name: str, processors: Mapping[str, Processor]) -> str:
    """Returns the first modality that reads a file of this name, or ""."""
    suffix = os.path.splitext(name)[1].lower()
    return next((modality for modality, processor in processors.items() if suffix in processor.suffixes), "")
