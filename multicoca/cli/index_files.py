"""The form of an index on disk, which `multicoca index` writes and `multicoca search` reads.

An index is a folder: `embeddings.bin` (fp32 rows of length 1), `files.jsonl` (a line for each row: file, modality, size
and time of change of the file, checksum of the row), `skipped.jsonl` (files that could not be read, with the reason)
and `index.json` (model, digest of its weights, width, number of rows). While it is written, the new one lies in `.part`
inside of it, and `.lock` is held. Lines of earlier versions have no size, time and checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multicoca.data.annotations import parse_json
from multicoca.modality import UnreadableFileError

ROWS, FILES, SKIPPED, ABOUT = "embeddings.bin", "files.jsonl", "skipped.jsonl", "index.json"
BEGUN = "begun.json"  # in PART: what ABOUT will say, without the number of rows
PART, LOCK = ".part", ".lock"
NEW = ".new"  # ending of files in PART that take the place of those without it


def row_bytes(width: int) -> int:
    """Returns the size of a row in bytes."""
    return 4 * width


def damaged(file: Path, index: Path, why: str) -> ValueError:
    """Returns the error for a damaged file of an index."""
    return ValueError(
        f"{file} is damaged: {why}; write the index again with: multicoca index MODEL FOLDER --out {index} --fresh"
    )


def parse_object(text: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        UnreadableFileError: it is none.
    """
    try:
        found = parse_json(text.decode())
    except UnicodeDecodeError as error:
        raise UnreadableFileError(str(error)) from error
    if not isinstance(found, dict):
        raise UnreadableFileError("no JSON object")
    return found


def read_about(file: Path, index: Path) -> dict[str, Any]:
    """Reads what an index says about itself.

    Raises:
        ValueError: it is damaged; the message names the file.
    """
    try:
        return parse_object(file.read_bytes())
    except UnreadableFileError as error:
        raise damaged(file, index, f"it cannot be parsed ({error})") from error


def whole_rows(folder: Path, width: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields (line, row) of an index that may be torn anywhere; those that do not belong together are left out."""
    if not ((folder / ROWS).is_file() and (folder / FILES).is_file()):
        return
    with (folder / ROWS).open("rb") as rows:
        for line in whole_lines(folder / FILES):
            row = rows.read(row_bytes(width))
            if len(row) == row_bytes(width) and zlib.crc32(row) == line.get("crc32"):
                yield line, row


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file of JSON lines up to the first that is torn."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                found = parse_object(line)
            except UnreadableFileError:
                return
            if not line.endswith(b"\n"):
                return
            yield found
