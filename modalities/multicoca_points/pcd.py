"""PCD files of the Point Cloud Library: text, binary and LZF-compressed, parsed from the declared types.

Source: the PCD 0.7 file format specification (pointclouds.org).
"""

from __future__ import annotations

import struct

import numpy as np
from jaxtyping import Shaped

from multicoca.reading import UnreadableFileError, require
from multicoca_points.table import read_table, shown

_MAX_HEADER_BYTES = 2**16
_TYPES = {
    ("F", 4): "<f4", ("F", 8): "<f8", ("U", 1): "u1", ("U", 2): "<u2", ("U", 4): "<u4", ("U", 8): "<u8",
    ("I", 1): "i1", ("I", 2): "<i2", ("I", 4): "<i4", ("I", 8): "<i8",
}  # fmt: skip
_ENCODINGS = ("ascii", "binary", "binary_compressed")

Column = tuple[str, str, int]  # name, type, values of each point
_CHANNELS = ("red", "green", "blue")  # the names that the values of a field 'rgb' of three get


def read_pcd(data: bytes) -> dict[str, Shaped[np.ndarray, " points"]]:
    """Returns the fields that have one value for each point, by name in lower case, and those of an rgb of three.

    Raises:
        UnreadableFileError: it is no PCD file, a row is missing or broken, or something follows the last one.
        ImportError: a package that its encoding needs is not installed.
    """
    header, start, first_line = _header(data)
    columns, count, encoding = _columns(header), _count(header), header["DATA"][0].lower()
    if encoding == "ascii":
        return _read_text(data[start:], first_line, columns, count)
    if encoding == "binary":
        return _read_rows(data[start:], columns, count)
    if encoding == "binary_compressed":
        return _read_compressed(data[start:], columns, count)
    raise UnreadableFileError(f"its DATA is '{shown(encoding.encode())}'; expected {', '.join(_ENCODINGS)}")


def _header(data: bytes) -> tuple[dict[str, list[str]], int, int]:
    """Returns (the words behind each key, where the data starts, the number of its first line)."""
    header: dict[str, list[str]] = {}
    place = number = 0
    while place < min(len(data), _MAX_HEADER_BYTES):
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        words = data[place:end].decode("latin-1").split()
        place, number = end + 1, number + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
            if words[0].upper() == "DATA":
                break
    header.setdefault("FIELDS", header.get("COLUMNS", []))
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "DATA") if not header.get(key)]
    if missing:
        raise UnreadableFileError(f"it is no PCD file: its header lacks {', '.join(missing)}")
    return header, place, number + 1


def _columns(header: dict[str, list[str]]) -> list[Column]:
    names = header["FIELDS"]
    counts = header.get("COUNT", ["1"] * len(names))
    if not len(names) == len(header["SIZE"]) == len(header["TYPE"]) == len(counts):
        raise UnreadableFileError("its header has FIELDS, SIZE, TYPE and COUNT of different lengths")
    columns = []
    for name, size, kind, count in zip(names, header["SIZE"], header["TYPE"], counts, strict=True):
        key = (kind.upper(), _number(size, "SIZE"))
        if key not in _TYPES:
            raise UnreadableFileError(
                f"its field '{name}' has the type {kind} of {size} bytes, which PCD does not know"
            )
        columns.append((name.lower(), _TYPES[key], _number(count, "COUNT")))
    found = [name for name, _, _ in columns if name != "_"]  # PCL's name of a gap
    if len(set(found)) < len(found):
        raise UnreadableFileError(f"its header names a field twice: {' '.join(names)}")
    return columns


def _count(header: dict[str, list[str]]) -> int:
    """Returns the number of points."""
    sizes = [_number(header[key][0], key) for key in ("WIDTH", "HEIGHT") if header.get(key)]
    area = sizes[0] * sizes[1] if len(sizes) == 2 else None
    points = _number(header["POINTS"][0], "POINTS") if header.get("POINTS") else area
    if points is None:
        raise UnreadableFileError("its header lacks POINTS, and WIDTH and HEIGHT")
    if area not in (None, points):
        raise UnreadableFileError(f"its header declares {points} POINTS, but WIDTH x HEIGHT is {area}")
    return points


def _number(word: str, key: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) < 19):
        raise UnreadableFileError(f"its {key} is {shown(word.encode())}; expected a whole number of at least 0")
    return int(word)


def _read_text(
    text: bytes, first_line: int, columns: list[Column], count: int
) -> dict[str, Shaped[np.ndarray, " points"]]:
    table = read_table(text, first_line)
    if len(table) != count:
        what = "it is cut off" if len(table) < count else "its count is too small, or it holds two scans"
        raise UnreadableFileError(f"{what}: it declares {count} points and holds {len(table)} rows")
    width = sum(number for _, _, number in columns)
    if count and table.shape[1] != width:
        raise UnreadableFileError(f"its rows hold {table.shape[1]} values; the header declares {width}")
    fields, place = {}, 0
    for name, kind, number in columns:
        for i, key in enumerate(_keys(name, number) if count else ()):
            values = table[:, place + i]
            fields[key] = values if kind[-2] == "f" else _whole(values, kind, name)
        place += number
    return fields


def _keys(name: str, number: int) -> tuple[str, ...]:
    """Returns the names of a field's columns; none where it is something else than a coordinate or colour."""
    if number == 3 and name in ("rgb", "color"):
        return _CHANNELS
    return (name,) if number == 1 else ()


def _whole(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        typed = values.astype(kind)
    if name in ("rgb", "rgba") and not np.array_equal(typed, values):
        return values  # some writers put the number of a float's bits here
    if not np.array_equal(typed, values):
        raise UnreadableFileError(f"its field '{name}' holds numbers that are no '{kind}'")
    return typed


def _read_rows(data: bytes, columns: list[Column], count: int) -> dict[str, Shaped[np.ndarray, " points"]]:
    # named by their place, since all gaps have the same name
    dtype = np.dtype([(str(i), kind, (number,)) for i, (_, kind, number) in enumerate(columns)])
    size = count * dtype.itemsize
    if size > len(data):
        raise UnreadableFileError(f"it is cut off: its {count} points take {size} bytes, {len(data)} are there")
    _check_end(data[size:], count)
    rows = np.frombuffer(data, dtype, count) if size else np.empty(0, dtype)
    found = [(key, i, k) for i, (name, _, number) in enumerate(columns) for k, key in enumerate(_keys(name, number))]
    return {key: rows[str(i)][:, k] for key, i, k in found}


def _check_end(rest: bytes, count: int) -> None:
    if rest.strip(b"\0\r\n "):
        raise UnreadableFileError(
            f"{len(rest)} bytes follow its {count} points; its count is too small, or it holds two scans"
        )


def _read_compressed(data: bytes, columns: list[Column], count: int) -> dict[str, Shaped[np.ndarray, " points"]]:
    """Reads LZF-compressed data, which lies field by field."""
    size = count * sum(np.dtype(kind).itemsize * number for _, kind, number in columns)
    if len(data) < 8:
        raise UnreadableFileError("it is cut off behind its header")
    packed, unpacked = struct.unpack_from("<II", data)
    if packed > len(data) - 8 or unpacked != size:
        raise UnreadableFileError(
            f"it is cut off or broken: it declares {packed} compressed bytes for {unpacked}, where {len(data) - 8} are "
            f"there and its {count} points take {size}"
        )
    _check_end(data[8 + packed :], count)
    content = require("lzf", "points").decompress(data[8 : 8 + packed], size) if size else b""
    if content is None or len(content) != size:
        raise UnreadableFileError("its compressed data is broken")
    fields, place = {}, 0
    for name, kind, number in columns:
        size = count * np.dtype(kind).itemsize
        for i, key in enumerate(_keys(name, number)):  # PCL packs the values of a point together
            fields[key] = np.frombuffer(content, kind, count * number, place)[i::number]
        place += number * size
    return fields
