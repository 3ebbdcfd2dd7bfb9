"""Lines of a manifest: JSONL, CSV or TSV, by the column names that people use.

A line is read whole or refused with its number. In a table a caption with an unquoted comma is never cut, and a quote
that is not closed never swallows other rows: it makes the whole file unusable, because nobody can say where it should
have ended. Form of CSV: RFC 4180.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from multicoca.data.fields import parse_json, shorten
from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken

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
_EXPECTED = (
    f"expected at least file_name and text (or label); other names for them are {', '.join(FILE_COLUMNS[1:])} and "
    f"{', '.join(TEXT_COLUMNS[1:])}"
)


@dataclass(frozen=True)
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
        for number, text in enumerate(_text_lines(manifest, "\n"), start=1):
            if text.strip():
                yield _json_line(number, text)
    else:
        yield from _table(manifest)


def _text_lines(manifest: Path, newline: str) -> Iterator[str]:
    """Yields the lines of a text file without its byte-order mark; bytes that are not UTF-8 become surrogates."""
    with manifest.open("rb") as file:
        head = file.read(4)
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
    reason = _not_utf_8(text)
    if reason:
        reason = f"the line is not UTF-8: {reason}"
        text = text.encode(errors="surrogateescape").decode(errors="replace")
    try:
        record = parse_json(text.strip())
    except UnreadableFileError as error:
        return Line(number, reason=reason or f"the line is not a JSON object with a file_name: {error}")
    if not isinstance(record, dict):
        return Line(number, reason=reason or f"the line is not a JSON object with a file_name, but {shorten(record)}")
    line = _named(number, record)
    return Line(number, line.values, line.extra, reason or line.reason)


def _named(number: int, record: Mapping[str, Any]) -> Line:
    """Sorts what a line says by the names that count."""
    chosen: dict[str, tuple[int, str]] = {}
    empty: set[str] = set()
    for name, value in record.items():
        known, place = _KNOWN.get(name) or _KNOWN.get(name.strip().lower()) or ("", 0)
        if known and value in (None, ""):
            empty.add(name)
        elif known and (known not in chosen or place < chosen[known][0]):
            chosen[known] = place, name
    values = {known: record[name] for known, (_, name) in chosen.items()}
    used = {name for _, name in chosen.values()} | empty
    extra = {name: value for name, value in record.items() if name not in used}
    if "file_name" not in values:
        has = shorten(list(record), 200)
        reason = f"it names no file; its fields are {has}, expected one of {', '.join(FILE_COLUMNS)}"
    else:
        reason = _second_file(chosen["file_name"][1], values["file_name"], extra)
    return Line(number, values, extra, reason)


def _second_file(used: str, file: Any, extra: Mapping[str, Any]) -> str:
    """Says that a line names a picture and a video, or ""."""
    own = next((group for group in _ONE_OF_EACH if used.strip().lower() in group), None)
    if own is not None:
        others = {name for group in _ONE_OF_EACH if group is not own for name in group}
        for name, other in extra.items():
            if name.strip().lower() in others and other not in (None, "", file):
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
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{manifest}, line {before + 1}: the header is broken: {error}") from error
    _check_header(manifest, header)
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
            yield Line(
                first, reason=f'the row is broken: {error}; inside of quotes write a quote twice, as in "a ""b"""'
            )
            continue
        if len(recent) > 1 and _swallows(row, recent[1:], header, delimiter):
            raise _open_quote(manifest, first)
        if any(cell.strip() for cell in row):
            yield _row(first, row, header)


def _checked(manifest: Path, recent: list[str]) -> Iterator[str]:
    """Yields the lines of a table and keeps them in `recent`."""
    for number, line in enumerate(_text_lines(manifest, ""), start=1):
        reason = _not_utf_8(line)
        if reason:
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


def _check_header(manifest: Path, header: Sequence[str]) -> None:
    names = [name.lower() for name in header if name]
    if not set(names) & set(FILE_COLUMNS) or not set(names) & {*TEXT_COLUMNS, "label"}:
        raise ValueError(f"{manifest} has the columns {list(header)}; {_EXPECTED}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{manifest} has two columns of the name {', '.join(twice)}; rename one of them")


def _open_quote(manifest: Path, number: int) -> ValueError:
    return ValueError(
        f"{manifest}, line {number}: a quote opens in this line and is not closed in it, so it would swallow the rows "
        'below; close it, or write each quote inside of a quoted caption twice, as in "a sign that says ""hello"""'
    )


def _swallows(row: Sequence[str], more: Sequence[str], header: Sequence[str], delimiter: str) -> bool:
    """Whether a row of several lines holds other rows: lines with all columns and a file of the same kind."""
    place = next(place for place, name in enumerate(header) if name.lower() in FILE_COLUMNS)
    if len(row) < len(header):
        return True
    suffix = PurePath(row[place]).suffix.lower()
    for line in more:
        cells = line.rstrip("\r\n").split(delimiter)
        if len(cells) >= len(header) and suffix and PurePath(cells[place].strip(' "')).suffix.lower() == suffix:
            return True
    return False


def _row(number: int, row: Sequence[str], header: Sequence[str]) -> Line:
    last = max(place for place, name in enumerate(header) if name)
    surplus = [cell for cell in row[last + 1 :] if cell or len(row) > len(header)]
    record: dict[str, Any] = dict(zip(header, row, strict=False))
    record.pop("", None)  # the unnamed column of row numbers that pandas writes
    line = _named(number, record)
    if surplus or len(row) < len(header):
        hint = (
            'put the caption into double quotes if it holds the sign between columns, as in "a cube, left of a ball"'
            if surplus
            else "add what is missing"
        )
        known = {"file_name": line.values["file_name"]} if "file_name" in line.values else {}
        return Line(number, known, reason=f"the row has {len(row)} columns, the header {len(header)}; {hint}")
    if "text" in line.values:
        line.values["text"] = _listed(line.values["text"])
    return line


def _listed(cell: str) -> str | list[str]:
    """Returns the captions of a cell that holds a list of strings as JSON, Python or numpy write it; or the cell."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    try:
        value = parse_json(text)
        return value if all(isinstance(one, str) for one in value) else cell
    except UnreadableFileError:
        pass
    try:
        with refuse_broken(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about a backslash in a caption
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
            strings = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
            others = {token.string for token in tokens if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)}
            counted = [token.string for token in tokens if token.type == tokenize.OP]
    except UnreadableFileError:
        return cell
    is_list = others <= {"[", "]", ","} and counted.count("[") == counted.count("]") == 1
    return strings if is_list and strings and all(isinstance(one, str) for one in strings) else cell
