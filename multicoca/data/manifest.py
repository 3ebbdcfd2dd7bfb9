"""Lines of a manifest: JSONL, CSV or TSV, by the column names that people use.

A line is read whole or refused with its number. In a table a caption with an unquoted comma is never cut, and a quote
that is not closed never swallows other rows: it makes the whole file unusable, because nobody can say where it should
have ended. Form of CSV: RFC 4180.
"""

from __future__ import annotations

import codecs
import csv
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from multicoca.data.annotations import packing, parse_json, shorten
from multicoca.modality import UnreadableFileError

SUFFIXES = (".jsonl", ".csv", ".tsv")
# where a line has several of them, the first that is not empty counts; letter case does not matter
FILE_COLUMNS = ("file_name", "filepath", "file_path", "filename", "file", "image", "image_path", "video", "video_path",
                "path")  # fmt: skip
TEXT_COLUMNS = ("text", "caption", "captions", "title", "texts", "sentences")
_ONE_OF_EACH = (("image", "image_path"), ("video", "video_path"))  # a line that has both names two files
_COLUMNS = {"file_name": FILE_COLUMNS, "text": TEXT_COLUMNS} | {
    name: (name,) for name in ("label", "split", "modality", "key")
}
_KNOWN = {name: (known, place) for known, names in _COLUMNS.items() for place, name in enumerate(names)}
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}  # spreadsheets of many countries write semicolons into .csv
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
          codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
_DOCUMENT = re.compile(r"\[\s*(?:\{|$)|\{$")  # how a list of objects, or an object of several lines, begins
_EXPECTED = (
    f"expected at least file_name and text (or label); other names for them are {', '.join(FILE_COLUMNS[1:])} and "
    f"{', '.join(TEXT_COLUMNS[1:])}"
)


@dataclass(slots=True)
class Line:
    """A line of a manifest.

    Attributes:
        number: of its first line in the file, from 1.
        values: "file_name", "text", "label", "split", "modality" and "key" as they stand there, those that are given.
        extra: all else that it says.
        reason: why it cannot be used, or "".
    """

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def read_lines(manifest: Path) -> Iterator[Line]:
    """Yields the lines of a manifest; a line that cannot be used comes with its reason.

    Raises:
        ValueError: the manifest cannot be used as a whole; the message says why and, where there is one, in which line.
    """
    if manifest.suffix.lower() == ".jsonl":
        is_first = True
        for number, text in enumerate(_text_lines(manifest, "\n"), start=1):
            text = text.strip()
            if is_first and _DOCUMENT.match(text):
                raise ValueError(
                    f"{manifest} is one JSON document, line {number} begins a list or an object of several lines; "
                    "write one object a line, as `jq -c '.[]'` does for a list"
                )
            if text:
                is_first = False
                yield _json_line(number, text)
    else:
        yield from _table(manifest)


def _text_lines(manifest: Path, newline: str) -> Iterator[str]:
    """Yields the lines of a text file without its byte-order mark; bytes that are not UTF-8 become surrogates."""
    with manifest.open("rb") as file:
        head = file.read(4)
    packed = packing(head)
    if packed:
        raise ValueError(f"{manifest} is no text, it is {packed}; write it as {' or '.join(SUFFIXES)}")
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and head.count(0) > 1:
        raise ValueError(f"{manifest} is not UTF-8, it looks like UTF-16; save it as UTF-8")
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    with manifest.open(encoding=encoding, errors=errors, newline=newline) as file:
        try:
            yield from file
        except UnicodeError as error:
            raise ValueError(f"{manifest} is not in {encoding.upper()}, as it begins: {error}") from error


def _not_utf_8(text: str) -> str:
    """Says why a line is not UTF-8, or ""."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text.encode(errors="surrogateescape").decode()
        except UnicodeDecodeError as error:
            return str(error)
    return ""


def _json_line(number: int, text: str) -> Line:
    reason = "" if text.isascii() else _not_utf_8(text)
    if reason:
        reason = f"the line is not UTF-8: {reason}"
        text = text.encode(errors="surrogateescape").decode(errors="replace")
    try:
        record = parse_json(text)
    except UnreadableFileError as error:
        return Line(number, reason=reason or f"the line is not a JSON object with a file_name: {error}")
    if not isinstance(record, dict):
        return Line(number, reason=reason or f"the line is not a JSON object with a file_name, but {shorten(record)}")
    line = _named(number, record)
    line.reason = reason or line.reason
    return line


@lru_cache(maxsize=1024)
def _meanings(names: tuple[str, ...]) -> tuple[dict[str, list[str]], list[str], bool]:
    """Sorts the names of columns.

    Returns:
        (names by what they mean, the first choice first; the others; whether some are for two files).
    """
    ranked: dict[str, list[tuple[int, str]]] = {}
    others = []
    for name in names:
        known, place = _KNOWN.get(name.strip().lower(), ("", 0))
        if known:
            ranked.setdefault(known, []).append((place, name))
        else:
            others.append(name)
    meanings = {known: [name for _, name in sorted(own, key=lambda one: one[0])] for known, own in ranked.items()}
    files = {name.strip().lower() for name in meanings.get("file_name", ())}
    return meanings, others, sum(not files.isdisjoint(group) for group in _ONE_OF_EACH) > 1


def _named(number: int, record: Mapping[str, Any]) -> Line:
    """Sorts what a line says by the names that count."""
    meanings, others, may_name_two = _meanings(tuple(record))
    line = Line(number, {}, {name: record[name] for name in others})
    used = ""
    for known, names in meanings.items():
        for name in names:
            value = record[name]
            if value is None or value == "":
                continue
            if known in line.values:
                line.extra[name] = value
            else:
                line.values[known] = value
                used = name if known == "file_name" else used
    if not used:
        has = shorten(list(record), 200)
        line.reason = f"it names no file; its fields are {has}, expected one of {', '.join(FILE_COLUMNS)}"
    elif may_name_two:
        line.reason = _second_file(used, line.values["file_name"], line.extra)
    return line


def _second_file(used: str, file: Any, extra: Mapping[str, Any]) -> str:
    """Says that a line names a picture and a video, or ""."""
    own = next((group for group in _ONE_OF_EACH if used.strip().lower() in group), None)
    if own is not None:
        others = {name for group in _ONE_OF_EACH if group is not own for name in group}
        for name, other in extra.items():
            if name.strip().lower() in others and other != file:
                return f"it names two files, {used} {shorten(file)} and {name} {shorten(other)}; give each its own line"
    return ""


def _table(manifest: Path) -> Iterator[Line]:
    """Yields the rows of a CSV or TSV file."""
    recent: list[str] = []  # lines of the file that the reader took since the last row
    lines = _checked(manifest, recent)
    head = next((line for line in lines if line.strip()), "")
    before = len(recent) - 1
    delimiter = _delimiter(head, _DELIMITERS[manifest.suffix.lower()])
    reader = csv.reader(chain([head] if head else [], lines), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        columns = _columns(manifest, next(reader, []))
    except csv.Error as error:
        raise ValueError(f"{manifest}, line {before + 1}: the header is broken: {error}") from error
    while True:
        recent.clear()
        first = reader.line_num + before + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if len(recent) > 1 or "unexpected end" in str(error):
                raise _open_quote(manifest, first) from error
            hint = '; inside of quotes write a quote twice, as in "a ""b"""' if "expected after" in str(error) else ""
            yield Line(first, reason=f"the row is broken: {error}{hint}")
            continue
        if len(recent) > 1 and _swallows(row, recent[1:], columns, delimiter):
            raise _open_quote(manifest, first)
        if any(row) and any(cell.strip() for cell in row):
            yield _row(first, row, columns)


def _checked(manifest: Path, recent: list[str]) -> Iterator[str]:
    """Yields the lines of a table and keeps them in `recent`."""
    for number, line in enumerate(_text_lines(manifest, ""), start=1):
        if not line.isascii() and (reason := _not_utf_8(line)):
            kind = manifest.suffix[1:].upper()
            raise ValueError(f"{manifest} is not a {kind} file in UTF-8: line {number}: {reason}; save it as one")
        recent.append(line)
        yield line


def _delimiter(head: str, candidates: str) -> str:
    """Returns what separates the columns: the first sign with which the header has a column of files."""
    for delimiter in candidates:
        names = {name.strip(' "\r\n\t').lower() for name in head.split(delimiter)}
        if len(names) > 1 and names & set(FILE_COLUMNS):
            return delimiter
    return candidates[0]


@dataclass(frozen=True)
class _Columns:
    """The header of a table.

    Attributes:
        names: of all columns.
        named: number of columns up to the last that has a name.
        file: place of the column of files.
    """

    names: list[str]
    named: int
    file: int


def _columns(manifest: Path, header: Sequence[str]) -> _Columns:
    """Reads a header.

    Raises:
        ValueError: a column is missing or there twice.
    """
    header = [name.strip() for name in header]
    names = [name.lower() for name in header]
    if set(names).isdisjoint(FILE_COLUMNS) or set(names).isdisjoint({*TEXT_COLUMNS, "label"}):
        raise ValueError(f"{manifest} has the columns {header}; {_EXPECTED}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{manifest} has two columns of the name {', '.join(twice)}; rename one of them")
    file = next(place for place, name in enumerate(names) if name in FILE_COLUMNS)
    return _Columns(header, max(place for place, name in enumerate(names) if name) + 1, file)


def _open_quote(manifest: Path, number: int) -> ValueError:
    return ValueError(
        f"{manifest}, line {number}: a quote opens in this line and is not closed in it, so it would swallow the rows "
        'below; close it, or write each quote inside of a quoted caption twice, as in "a sign that says ""hello"""'
    )


def _swallows(row: Sequence[str], more: Sequence[str], columns: _Columns, delimiter: str) -> bool:
    """Whether a row of several lines holds other rows: lines with all columns and a file."""
    if len(row) < len(columns.names):
        return True
    suffix = PurePath(row[columns.file]).suffix.lower()
    for line in more:
        cells = line.rstrip("\r\n").split(delimiter)
        if len(cells) >= len(columns.names) and suffix:
            file = cells[columns.file].strip(' "').lower()
            kind = (mimetypes.guess_type(file)[0] or "").partition("/")[0]
            if PurePath(file).suffix == suffix or kind in ("image", "video", "audio"):
                return True
    return False


def _row(number: int, row: Sequence[str], columns: _Columns) -> Line:
    record: dict[str, Any] = dict(zip(columns.names, row, strict=False))
    record.pop("", None)  # the unnamed column of row numbers that pandas writes
    line = _named(number, record)
    expected = len(columns.names)
    if len(row) == expected and (columns.named == expected or not any(row[columns.named :])):
        return line
    hint = (
        'put the caption into double quotes if it holds the sign between columns, as in "a cube, left of a ball"'
        if len(row) >= expected
        else "add what is missing"
    )
    known = {"file_name": line.values["file_name"]} if "file_name" in line.values else {}
    return Line(number, known, reason=f"the row has {len(row)} columns, the header {expected}; {hint}")
