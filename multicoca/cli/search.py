"""`multicoca search INDEX QUERY`: finds the files of an index by a sentence or by a file.

The index is the folder that `multicoca index` writes; its form is described there. Nothing in it is believed: a torn or
changed file is an error that names it.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multicoca.api import load
from multicoca.cli.index_files import ABOUT, FILES, PART, ROWS, damaged, parse_object, read_about, row_bytes
from multicoca.modality import UnreadableFileError
from multicoca.terminal import printable

_ROWS_AT_ONCE = 65536  # of the index held in memory during a search


def run_search(arguments: list[str]) -> int:
    """Runs `multicoca search`."""
    parser = argparse.ArgumentParser(prog="multicoca search", description="Finds files in an index.")
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("query", help="a sentence, or a file of any modality of the model")
    parser.add_argument("--text", action="store_true", help="the query is a sentence, even if there is such a file")
    parser.add_argument("--modality", metavar="NAME", help="list files of this modality alone")
    parser.add_argument("--top", type=int, default=10, help="how many files to list (default: 10)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--model", help="use this model folder instead of the one that wrote the index")
    options = parser.parse_args(arguments)
    if options.top < 1:
        raise ValueError(f"--top is {options.top}; expected at least 1")
    index = read_index(options.index)
    model = load(options.model or index.model)
    if not options.text and _is_file(options.query):
        query = model.embed([options.query])[0].numpy()
    else:
        query = model.embed_text([_sentence(options.query)])[0].numpy()
    if len(query) != index.width:
        raise ValueError(f"the index has embeddings of width {index.width}, the model gives {len(query)}")
    for similarity, line in search_index(index, query, options.top, options.modality):
        if options.json:
            print(json.dumps({"similarity": similarity, "modality": line["modality"], "file": line["file"]}))
        else:
            print(f"{similarity:.3f}\t{printable(line['modality'])}\t{printable(line['file'])}")
    return 0


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


def _sentence(query: str) -> str:
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the query is not UTF-8: {printable(query)}; there is no such file either") from error
    return query


@dataclass(frozen=True)
class Index:
    """An index whose sizes fit together.

    Attributes:
        folder: where it lies.
        model: who wrote it, a folder or `owner/name` of the hub.
        width: of its embeddings.
        count: of its files.
    """

    folder: Path
    model: str
    width: int
    count: int


def read_index(folder: Path) -> Index:
    """Reads what an index says about itself and checks it.

    Raises:
        ValueError: there is no index, or it is damaged; the message names the file.
    """
    file = folder / ABOUT
    if not file.is_file():
        if (folder / PART).is_dir():
            raise ValueError(f"the index {folder} is not finished; run the same multicoca index command again")
        raise ValueError(f"{folder} is not an index; make one with: multicoca index MODEL FOLDER --out INDEX")
    about = read_about(file, folder)
    kinds = {"model": str, "width": int, "count": int}
    for name, kind in kinds.items():
        value = about.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < (name == "width")):
            expected = "a string" if kind is str else "a positive number"
            raise damaged(file, folder, f"its {name} is {value!r:.60}, expected {expected}")
    index = Index(folder, about["model"], about["width"], about["count"])
    rows, expected = folder / ROWS, index.count * row_bytes(index.width)
    size = rows.stat().st_size if rows.is_file() else None
    if size != expected:
        told = "is missing" if size is None else f"has {size} bytes"
        raise damaged(rows, folder, f"it {told}, expected {expected} for {index.count} rows of width {index.width}")
    if not (folder / FILES).is_file():
        raise damaged(folder / FILES, folder, "it is missing")
    return index


def search_index(
    index: Index, query: np.ndarray, top: int, modality: str | None = None
) -> list[tuple[float, dict[str, Any]]]:
    """Returns the `top` most similar files as (cosine similarity, line of files.jsonl), best first.

    Equal ones are in the order of the index, and a row with a NaN is never found.

    Raises:
        ValueError: the index is damaged, or has no file of this modality.
    """
    wanted = None if modality is None else _rows_of(index, modality)
    if not index.count:
        return []
    rows = np.memmap(index.folder / ROWS, dtype=np.float32, mode="r", shape=(index.count, index.width))
    scores, best = np.empty(0, np.float32), np.empty(0, np.int64)
    for start in range(0, index.count, _ROWS_AT_ONCE):
        block = rows[start : start + _ROWS_AT_ONCE] @ query
        usable = np.isfinite(block) if wanted is None else np.isfinite(block) & wanted[start : start + _ROWS_AT_ONCE]
        places = np.flatnonzero(usable)
        scores, best = np.concatenate([scores, block[places]]), np.concatenate([best, places + start])
        kept = best_places(scores, top)
        scores, best = scores[kept], best[kept]
    order = np.argsort(-scores, kind="stable")
    lines = _lines_at(index, best)
    for row in best.tolist():
        said = lines[row].get("crc32")
        if said is not None and zlib.crc32(rows[row].tobytes()) != said:
            raise damaged(index.folder / ROWS, index.folder, f"its row {row + 1} is not the one that was written")
    return [(float(scores[place]), lines[int(best[place])]) for place in order]


def best_places(scores: np.ndarray, top: int) -> np.ndarray:
    """Returns the places of the `top` largest scores, in their order; of equal ones the first count."""
    if len(scores) <= top:
        return np.arange(len(scores))
    least = np.partition(scores, len(scores) - top)[len(scores) - top]
    above = np.flatnonzero(scores > least)
    return np.sort(np.concatenate([above, np.flatnonzero(scores == least)[: top - len(above)]]))


def _rows_of(index: Index, modality: str) -> np.ndarray:
    """Returns which rows are of a modality."""
    wanted, seen = np.zeros(index.count, bool), set()
    for number, line in _numbered_lines(index):
        found = _parsed(index, number, line)["modality"]
        seen.add(found)
        wanted[number] = found == modality
    if modality not in seen:
        raise ValueError(f"--modality is '{modality}'; the index has files of {', '.join(sorted(seen)) or 'none'}")
    return wanted


def _lines_at(index: Index, rows: np.ndarray) -> dict[int, dict[str, Any]]:
    """Returns what is said of rows."""
    wanted = set(rows.tolist())
    return {number: _parsed(index, number, line) for number, line in _numbered_lines(index) if number in wanted}


def _numbered_lines(index: Index) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of files.jsonl; raises where they are more or fewer than rows."""
    number, line = -1, b"\n"
    with (index.folder / FILES).open("rb") as file:
        for number, line in enumerate(file):
            if number >= index.count or not line.endswith(b"\n"):
                break
            yield number, line
    whole = number + line.endswith(b"\n")
    if whole != index.count or not line.endswith(b"\n"):
        told = "more" if number >= index.count else f"{whole} whole"
        raise damaged(index.folder / FILES, index.folder, f"it has {told} lines, expected {index.count}")


def _parsed(index: Index, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = parse_object(line)
    except UnreadableFileError as error:
        raise damaged(index.folder / FILES, index.folder, f"line {number + 1} cannot be parsed ({error})") from error
    if not all(isinstance(found.get(name), str) for name in ("file", "modality")):
        raise damaged(index.folder / FILES, index.folder, f"line {number + 1} names no file and modality")
    return found
