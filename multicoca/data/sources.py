"""Your own data: a folder with `metadata.jsonl`, or a CSV or JSONL manifest; modalities may be mixed.

A line holds `file_name` (relative to the folder), `text` (a string or a list of strings), and if wanted
`label`, `split` (train or test), `modality` (where two modalities read the same suffix) and `key`. The form is
Hugging Face's imagefolder. Whatever cannot be used is a `Problem` with its reason; nothing is dropped silently.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from multicoca.data.order import keyed_number
from multicoca.data.sample import Item, Problem
from multicoca.modality import Processor

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_KNOWN = ("file_name", "text", "label", "split", "modality", "key")


@dataclass(frozen=True)
class Listing:
    """What a source offers.

    Attributes:
        splits: items by split and modality; a sequence may make its items only when they are asked for.
        problems: the lines that cannot be used.
        listed: number of lines by split and modality, the unusable ones included.
    """

    splits: dict[str, dict[str, Sequence[Item]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    listed: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, split: str) -> dict[str, Sequence[Item]]:
        """Returns the items of a split by modality; empty when there is no such split."""
        return self.splits.get(split, {})


@runtime_checkable
class Source(Protocol):
    """Where training and evaluation items come from."""

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Lists all items, for the given modalities."""
        ...


class Folder:
    """A folder with `metadata.jsonl` or `metadata.csv`, or such a manifest itself.

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
        """Reads the metadata and sorts its lines into splits and modalities."""
        del seed  # the split depends on keys alone
        listing, items = Listing(), {}
        seen: set[str] = set()
        for number, line, reason in _lines(self.manifest):
            name = str(line.get("file_name") or "")
            key = str(line.get("key") or name or f"line {number}")
            split = str(line.get("split") or "") or self._split_of(key)
            modality = str(line.get("modality") or "") or modality_by_suffix(name, processors)
            item = None
            if not reason:
                item, reason = _item(line, key, modality, self.manifest.parent, processors)
            if item is not None and (modality, key) in seen:
                item, reason = None, f"its key '{key}' occurs twice; keys must be unique"
            counts = listing.listed.setdefault(split, {})
            counts[modality or "unknown"] = counts.get(modality or "unknown", 0) + 1
            if item is None:
                file = self.manifest.parent / name if name else self.manifest
                listing.problems.append(Problem(key, str(file), reason, split, modality))
            else:
                seen.add((item.modality, key))
                items.setdefault(split, {}).setdefault(item.modality, []).append(item)
        listing.splits.update(items)
        return listing

    def _split_of(self, key: str) -> str:
        return "test" if keyed_number("split", key) / 2**64 < self.test_share else "train"


def check_share(test_share: float) -> float:
    """Returns the share, or says that it is none."""
    if not 0 <= test_share < 1:
        raise ValueError(f"data.source.test_share is {test_share}; expected a share from 0 to below 1")
    return test_share


def _find_manifest(root: Path) -> Path:
    if root.is_file():
        if root.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"the manifest {root} is a '{root.suffix}' file; expected .jsonl or .csv")
        return root
    if not root.is_dir():
        raise ValueError(f"data.root is {root}, which does not exist; give a folder or a .jsonl or .csv manifest")
    for name in METADATA_NAMES:
        if (root / name).is_file():
            return root / name
    raise ValueError(
        f"{root} holds no metadata.jsonl or metadata.csv; write one line per file, "
        'for example {"file_name": "photo.jpg", "text": "a red chair"}'
    )


def _lines(manifest: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields (line number, record, why it cannot be used or ""); a line that is not a record comes as an empty one."""
    if manifest.suffix == ".csv":
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            try:
                if not {"file_name", "text"} <= set(reader.fieldnames or ()):
                    raise ValueError(
                        f"{manifest} has the columns {reader.fieldnames}; expected at least file_name and text"
                    )
                for number, record in enumerate(reader, start=2):
                    yield number, record, ""
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{manifest} is not a CSV file in UTF-8: {error}; save it as one") from error
        return
    with manifest.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, *_record(line)


def _record(line: bytes) -> tuple[dict[str, Any], str]:
    """Returns (what a line of JSON says, why it cannot be used or "")."""
    reason = ""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        text, reason = line.decode(errors="replace"), f"the line is not UTF-8: {error}"
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        return {}, reason or "the line is not a JSON object with a file_name"
    return record, reason


def _item(
    line: Mapping[str, Any], key: str, modality: str, folder: Path, processors: Mapping[str, Processor]
) -> tuple[Item | None, str]:
    """Returns (item, "") or (None, the reason why the line cannot be used)."""
    if not line.get("file_name"):
        return None, "the line is not a JSON object with a file_name"
    file = folder / str(line["file_name"])
    if modality not in processors:
        readable = ", ".join(sorted({suffix for processor in processors.values() for suffix in processor.suffixes}))
        what = (
            f"modality '{modality}' is not among {', '.join(processors)}"
            if modality
            else f"suffix '{file.suffix}' is unknown"
        )
        return None, f"{what}; readable suffixes: {readable}"
    reason = _unusable(file)
    if reason:
        return None, reason
    given = line.get("text")
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    texts = [text.strip().encode(errors="replace").decode() for text in texts if isinstance(text, str) and text.strip()]
    if not texts:
        return None, "it has no caption: text is empty or not a string or list of strings"
    label = line.get("label")
    extra = {name: value for name, value in line.items() if name not in _KNOWN}
    return Item(
        key, file, modality, tuple(dict.fromkeys(texts)), None if label in (None, "") else str(label), extra
    ), ""


def _unusable(file: Path) -> str:
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
    suffix = Path(name).suffix.lower()
    return next((modality for modality, processor in processors.items() if suffix in processor.suffixes), "")
