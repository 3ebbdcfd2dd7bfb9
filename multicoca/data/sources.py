"""Your own data: a folder with `metadata.jsonl`, or a JSONL, CSV or TSV manifest; modalities may be mixed.

A line holds `file_name` (relative to the folder), `text` (a string or a list of strings), and if wanted
`label`, `split` (train, validation or test), `modality` (where two modalities read the same suffix) and `key`; other
usual names of columns are in `multicoca.data.manifest`. Lines of one file are one item with all their captions. The
form is Hugging Face's imagefolder. Whatever cannot be used is a `Problem` with its reason; nothing is dropped silently.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from multicoca.data.annotations import TEST, TRAIN, clean_text, parse_captions, parse_split, parse_string, shorten
from multicoca.data.manifest import SUFFIXES, Line, read_lines
from multicoca.data.order import keyed_number
from multicoca.data.sample import Item, Problem
from multicoca.modality import Processor, UnreadableFileError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")  # pathlib makes one slash of two
_NAMING = ("label", "split", "modality", "key")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")


@dataclass(frozen=True)
class Listing:
    """What a source offers.

    Attributes:
        splits: items by split and modality; a sequence may make its items only when they are asked for.
        problems: what cannot be used.
        listed: number of items by split and modality, the unusable ones included.
        captioned: the items with captions by split and modality, where there are others.
        roots: folders of manifests, which name files; a file outside of them may be somebody else's.
        skipped: modalities that the source can have no items of, with the reason.
        ambiguous: of the problems, those of items that several modalities read and that name none.
    """

    splits: dict[str, dict[str, Sequence[Item]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    listed: dict[str, dict[str, int]] = field(default_factory=dict)
    captioned: dict[str, dict[str, Sequence[Item]]] = field(default_factory=dict)
    roots: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ambiguous: list[Problem] = field(default_factory=list)

    def of(self, split: str) -> dict[str, Sequence[Item]]:
        """Returns the items of a split by modality; empty when there is no such split."""
        return self.splits.get(split, {})

    def with_captions(self, split: str) -> dict[str, Sequence[Item]]:
        """Returns the items of a split that have captions, by modality."""
        return {**self.of(split), **self.captioned.get(split, {})}


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
        folder, by_suffix = self.manifest.parent, readers_by_suffix(processors)
        listing = Listing(roots=[folder])
        listed: Counter[tuple[str, str]] = Counter()
        items: dict[tuple[str, str], list[Item]] = {}
        first_lines: dict[tuple[str, str], int] = {}
        for entry in _entries(self.manifest):
            split = self._split_of(entry)
            suffix = os.path.splitext(entry.name)[1].lower()
            readers = by_suffix.get(suffix, ())
            modality = entry.value("modality") or (readers[0] if len(readers) == 1 else "")
            listed[split, modality] += 1
            file = folder / entry.name if entry.name else self.manifest
            reason = entry.reason
            is_ambiguous = not reason and not modality and bool(readers)
            if is_ambiguous:
                reason = ambiguous(suffix, readers)
            reason = reason or _unusable(file, modality, processors)
            first = first_lines.setdefault((modality, entry.key), entry.lines[0]) if not reason else 0
            if not reason and first != entry.lines[0]:
                reason = f"its key '{entry.key}' occurs twice, first in line {first}; keys must be unique"
            if reason:
                where = f"{self.manifest.name}, {_numbers(entry.lines)}"
                listing.problems.append(Problem(entry.key, str(file), f"{reason} ({where})", split, modality))
                listing.ambiguous.extend(listing.problems[-1:] if is_ambiguous else [])
            else:
                label = entry.value("label") or None
                item = Item(entry.key, file, modality, entry.texts, label, entry.extra)
                items.setdefault((split, modality), []).append(item)
        for (split, modality), count in listed.items():
            listing.listed.setdefault(split, {})[modality or "unknown"] = count
        for (split, modality), found in items.items():
            listing.splits.setdefault(split, {})[modality] = found
            captioned = [item for item in found if item.texts]
            if len(captioned) < len(found):
                listing.captioned.setdefault(split, {})[modality] = captioned
        return _distinct(listing)

    def _split_of(self, entry: _Entry) -> str:
        if "split" in entry.given:
            return entry.given["split"][0]
        return TEST if keyed_number("split", entry.key) / 2**64 < self.test_share else TRAIN


@dataclass(slots=True)
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
    lines: tuple[int, ...]
    texts: tuple[str, ...]
    given: dict[str, tuple[str, int]]
    extra: dict[str, Any]
    reason: str = ""

    def value(self, name: str) -> str:
        """Returns what is given, or ""."""
        return self.given[name][0] if name in self.given else ""


def _entries(manifest: Path) -> Iterator[_Entry]:
    """Yields what the lines say about each file, lines that cannot be used by themselves, in order."""
    folder = str(manifest.parent)
    files: dict[str | tuple[str, str], _Entry] = {}
    broken: list[_Entry] = []
    for line in read_lines(manifest):
        entry = _entry(line)
        if entry.reason:
            broken.append(entry)
            continue
        place = os.path.normpath(os.path.join(folder, entry.name))
        before = files.setdefault((place, entry.key) if "key" in entry.given else place, entry)
        if before is not entry:
            _join(before, entry)
    in_order = sorted([*files.values(), *broken], key=lambda entry: entry.lines[0])
    files.clear()
    in_order.reverse()
    while in_order:
        yield in_order.pop()  # so that entries and items are not all held at once


def _entry(line: Line) -> _Entry:
    """Takes in a line; its `reason` says why it cannot be used."""
    entry = _Entry("", f"line {line.number}", (line.number,), (), {}, line.extra, line.reason)
    try:
        name = line.values.get("file_name", "")
        if not isinstance(name, str):
            raise UnreadableFileError(f"its file_name is {shorten(name)}; expected a string")
        clean_text("file_name", name)
        entry.name, entry.key = name, name or entry.key
        for known in _NAMING:
            if known in line.values:
                value = (parse_split if known == "split" else partial(parse_string, known))(line.values[known])
                if value:
                    entry.given[known] = value, line.number
        entry.key = entry.value("key") or entry.key
        entry.texts = tuple(parse_captions("text", line.values.get("text")))
        if not entry.texts and "label" not in entry.given:
            raise UnreadableFileError("it has no caption and no label: text is empty; expected a string or a list")
    except UnreadableFileError as error:
        entry.reason = entry.reason or str(error)
    return entry


def _join(entry: _Entry, other: _Entry) -> None:
    """Adds another line of the same file to an entry; its `reason` says where the two disagree."""
    entry.lines += other.lines
    entry.texts = tuple(dict.fromkeys(entry.texts + other.texts))
    for name, (value, line) in other.given.items():
        before, first = entry.given.setdefault(name, (value, line))
        if before != value and not entry.reason:
            entry.reason = (
                f"lines {first} and {line} give this file the {name} '{before}' and '{value}'; "
                "give one, or give each line a key of its own"
            )
    entry.extra = {**other.extra, **entry.extra}


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
    """Returns for example "line 3" or "lines 3, 4 and 3 more"."""
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:5]))}{more}"


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
        return _why_missing(file)
    except (OSError, ValueError) as error:  # ValueError: no name of a file holds a null byte
        return f"the file cannot be found: {error}"
    return "" if stat.S_ISREG(mode) else "it is a folder or a device, not a file"


def _why_missing(file: Path) -> str:
    """Says that a file does not exist, and what a name of this kind often should be."""
    if _URL.search(str(file)):
        return "it is a URL; download the file and name it by its path"
    forms = [Path(unicodedata.normalize(form, str(file))) for form in ("NFC", "NFD")]
    if any(other != file and other.is_file() for other in forms):
        return "the file does not exist, but one whose name has the same letters in another Unicode form; rename it"
    slashes = file.name.replace("\\", "/")
    if "\\" in file.name and (file.parent / slashes).is_file():
        return f"the file does not exist; names of folders end with /, as in {slashes}"
    return "the file does not exist"


def readers_by_suffix(processors: Mapping[str, Processor]) -> dict[str, list[str]]:
    """Returns the modalities that read files of each suffix."""
    readers: dict[str, list[str]] = {}
    for modality, processor in processors.items():
        for suffix in dict.fromkeys(processor.suffixes):
            readers.setdefault(suffix, []).append(modality)
    return readers


def ambiguous(suffix: str, readers: Sequence[str]) -> str:
    """Says that nothing tells which modality an item of this suffix is for."""
    return (
        f"its suffix '{suffix}' is read by {' and '.join(readers)}; say which by \"modality\" beside its text, or "
        "choose one of them"
    )
