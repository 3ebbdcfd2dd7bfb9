"""PLY files, parsed from the types that their header declares; and a writer.

Every declared row must be there and nothing may follow the last one, so that a cut file or a wrong count is an error
and never a part of a scene.

Source: the PLY format (Turk, 1994).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from multicoca.reading import UnreadableFileError
from multicoca_points.table import read_table, shown

_TYPES = {
    "char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2",
    "uint16": "u2", "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8", "int64": "i8", "uint64": "u8",
}  # fmt: skip
_MAX_HEADER_BYTES = 2**20
_HEADER = re.compile(rb"ply[ \t]*(\r\n|\n|\r)(.*?(?:\r\n|\n|\r))end_header[ \t]*(?:\r\n|\n|\r|$)", re.DOTALL)
_CORNERS = ("vertex_indices", "vertex_index")
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_PLY_DTYPE = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


@dataclass(frozen=True)
class Property:
    """A value of each row, or a list of values: then `length` is the type of the list's length."""

    name: str
    type: str
    length: str = ""


@dataclass(frozen=True)
class Element:
    """A table of the file."""

    name: str
    count: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Ply:
    """What a file holds.

    Attributes:
        vertices: fields of the vertices by name in lower case, in the types that the header declares.
        corners: of the triangles of all faces, or None when the file declares no faces.
        face_fields: fields of those triangles, each of the face that it is a part of.
        comments: of the header.
    """

    vertices: dict[str, Shaped[np.ndarray, " vertices"]]
    corners: Int64[np.ndarray, "triangles 3"] | None
    face_fields: dict[str, Shaped[np.ndarray, " triangles"]]
    comments: tuple[str, ...]


def read_ply(data: bytes) -> Ply:
    """Parses a PLY file.

    Raises:
        UnreadableFileError: it is not one, a row is missing or broken, or something follows the last row.
    """
    encoding, elements, comments, start, first_line = _header(data)
    if all(element.name != "vertex" for element in elements):
        raise UnreadableFileError(f"its header declares no vertices, only {sorted(e.name for e in elements)}")
    body: _Binary | _Text
    body = _Text(data, start, first_line) if encoding == "ascii" else _Binary(data, start, _BYTE_ORDERS[encoding])
    vertices: dict[str, np.ndarray] = {}
    corners, strips, fields = None, None, {}
    num_vertices = 0
    for number, element in enumerate(elements):
        columns, lists = body.read(element, is_last=number == len(elements) - 1)
        if element.name == "vertex":
            vertices, num_vertices = columns, element.count
        elif element.name == "face" and element.count > 0:
            name = next((name for name in _CORNERS if name in lists), None)
            if name is not None:
                corners, owners = _triangles(lists[name][0], _whole(lists[name][1]))
                fields = {key: values[owners] for key, values in columns.items()}
        elif element.name == "tristrips" and _CORNERS[0] in lists:
            strips = _strips(_whole(lists[_CORNERS[0]][1]), lists[_CORNERS[0]][0])
    body.check_end()
    corners = strips if corners is None else corners
    if corners is not None and corners.size and not 0 <= corners.min() <= corners.max() < num_vertices:
        raise UnreadableFileError(f"a face names a vertex outside of 0 to {num_vertices - 1}")
    return Ply(vertices, corners, fields, comments)


def _header(data: bytes) -> tuple[str, list[Element], tuple[str, ...], int, int]:
    """Returns (encoding, elements, comments, where the body starts, the number of its first line)."""
    if not data.startswith(b"ply"):
        raise UnreadableFileError(f"it does not start with the line 'ply' but with {shown(data[:20])}")
    match = _HEADER.match(data, 0, _MAX_HEADER_BYTES)
    if match is None:
        raise UnreadableFileError("its header does not end with the line 'end_header'")
    encoding, elements, comments = "", [], []
    lines = match[2].splitlines()  # of bytes: those of text also end at characters of a comment
    for line in (line.decode("latin-1") for line in lines):
        words = line.split()
        try:
            if words[:1] == ["format"]:
                encoding, version = words[1:]
                if version != "1.0":
                    raise ValueError(version)
            elif words[:1] in (["comment"], ["obj_info"]):
                comments.append(line.strip())
            elif not line.isascii():
                raise ValueError(line)
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                is_list = words[1] == "list"
                types = [_TYPES[word] for word in (words[2:4] if is_list else words[1:2])]
                elements[-1][2].append(Property(words[-1].lower(), types[-1], types[0] if is_list else ""))
        except (LookupError, ValueError):
            raise UnreadableFileError(f"its header has a line that cannot be read: {shown(line.encode())}") from None
    if encoding not in ("ascii", *_BYTE_ORDERS):
        raise UnreadableFileError(f"its format is '{encoding}'; expected ascii, {', '.join(_BYTE_ORDERS)}")
    for name, count, properties in elements:
        names = [own.name for own in properties]
        if count < 0 or len(set(names)) < len(names):
            raise UnreadableFileError(f"its header declares {count} rows of '{name}' with the fields {names}")
    if len({name for name, _, _ in elements}) < len(elements):
        raise UnreadableFileError(f"its header declares an element twice: {', '.join(name for name, _, _ in elements)}")
    whole = [Element(name, count, tuple(properties)) for name, count, properties in elements]
    return encoding, whole, tuple(comments), match.end(), len(lines) + 3


Columns = dict[str, Shaped[np.ndarray, " rows"]]
Lists = dict[str, tuple[Int64[np.ndarray, " rows"], Shaped[np.ndarray, " values"]]]  # (lengths, all values)


class _Binary:
    """The body of a binary file, element by element."""

    def __init__(self, data: bytes, start: int, byte_order: str):
        self.data, self.place, self.order = data, start, byte_order

    def read(self, element: Element, is_last: bool) -> tuple[Columns, Lists]:
        if not any(own.length for own in element.properties):
            return self._rows(element, self._dtype(element, ())), {}
        return self._rows_with_lists(element)

    def check_end(self) -> None:
        if self.data[self.place :].strip(b"\0\r\n \t"):
            raise UnreadableFileError(
                f"{len(self.data) - self.place} bytes follow its last declared row; the counts of its header are too "
                "small, or it holds two scans"
            )

    def _dtype(self, element: Element, lengths: tuple[int, ...]) -> np.dtype:
        """Returns the type of a row whose lists have these lengths."""
        fields, left = [], list(lengths)
        for own in element.properties:
            if own.length:
                fields += [(f"{own.name} length", self.order + own.length)]
                fields += [(own.name, self.order + own.type, (left.pop(0),))]
            else:
                fields += [(own.name, self.order + own.type)]
        return np.dtype(fields)

    def _rows(self, element: Element, dtype: np.dtype) -> Columns:
        size, held = element.count * dtype.itemsize, len(self.data) - self.place
        if size > held:
            rows = "its points" if element.name == "vertex" else f"its {element.count} rows of '{element.name}'"
            raise UnreadableFileError(f"it is cut off: {rows} take {size} bytes, {held} are there")
        rows = np.frombuffer(self.data, dtype, element.count, self.place) if size else np.empty(0, dtype)
        self.place += size
        return {name: _native(rows[name]) for name in dtype.names or ()}

    def _rows_with_lists(self, element: Element) -> tuple[Columns, Lists]:
        """Reads rows that are all like the first, as those of triangle meshes are, or else one by one."""
        lists = [own for own in element.properties if own.length]
        start = self.place
        if element.count:
            try:
                first = self._one_by_one(Element(element.name, 1, element.properties))[1]
                self.place = start
                lengths = tuple(int(first[own.name][0][0]) for own in lists)
                columns = self._rows(element, self._dtype(element, lengths))
                held = {own.name: columns.pop(f"{own.name} length").astype(np.int64) for own in lists}
                if all((held[own.name] == length).all() for own, length in zip(lists, lengths, strict=True)):
                    return columns, {name: (sizes, columns.pop(name).ravel()) for name, sizes in held.items()}
            except UnreadableFileError:
                pass  # shorter rows may follow
        self.place = start
        return self._one_by_one(element)

    def _one_by_one(self, element: Element) -> tuple[Columns, Lists]:
        columns: dict[str, list] = {own.name: [] for own in element.properties}
        lengths: dict[str, list[int]] = {own.name: [] for own in element.properties if own.length}
        readers = [(own, struct.Struct(self.order + _struct(own.length or own.type))) for own in element.properties]
        if element.count > len(self.data) - self.place:  # a list takes at least a byte
            raise UnreadableFileError(f"it is cut off: it declares {element.count} rows of '{element.name}'")
        for row in range(element.count):
            try:
                for own, reader in readers:
                    (value,) = reader.unpack_from(self.data, self.place)
                    self.place += reader.size
                    if own.length:
                        size = struct.calcsize(_struct(own.type)) * value
                        if value < 0 or self.place + size > len(self.data):
                            raise struct.error
                        lengths[own.name].append(value)
                        columns[own.name].append(self.data[self.place : self.place + size])
                        self.place += size
                    else:
                        columns[own.name].append(value)
            except struct.error:
                raise UnreadableFileError(f"it is cut off in row {row + 1} of '{element.name}'") from None
        plain = {own.name: np.array(columns[own.name], own.type) for own in element.properties if not own.length}
        found = {
            own.name: (
                np.array(lengths[own.name], np.int64),
                _native(np.frombuffer(b"".join(columns[own.name]), self.order + own.type)),
            )
            for own in element.properties
            if own.length
        }
        return plain, found


class _Text:
    """The body of a text file, element by element: one line is one row."""

    def __init__(self, data: bytes, start: int, first_line: int):
        self.text, self.line = data[start:], first_line
        self._lines: list[tuple[int, bytes]] | None = None  # what is left, when it had to be split

    def read(self, element: Element, is_last: bool) -> tuple[Columns, Lists]:
        if is_last and self._lines is None:
            text, first_line = self.text, self.line
            self.text = b""
        else:
            lines = self._take(element.count)
            text, first_line = b"\n".join(line for _, line in lines), lines[0][0] if lines else 0
        if any(own.length for own in element.properties):
            return self._rows_with_lists(element, text, first_line)
        table = read_table(text, first_line)
        _check_count(element, len(table))
        if table.size and table.shape[1] != len(element.properties):
            raise UnreadableFileError(
                f"its rows of '{element.name}' hold {table.shape[1]} values; the header declares "
                f"{len(element.properties)}"
            )
        table = table.reshape(-1, len(element.properties))
        return {own.name: _typed(table[:, i], own) for i, own in enumerate(element.properties)}, {}

    def check_end(self) -> None:
        left = self.text if self._lines is None else b"".join(line for _, line in self._lines)
        if left.strip(b"\0 \t\r\n"):
            raise UnreadableFileError(
                f"text follows its last declared row ({shown(left.strip())}); the counts of its header are too small, "
                "or it holds two scans"
            )

    def _take(self, count: int) -> list[tuple[int, bytes]]:
        if self._lines is None:
            numbered = enumerate(self.text.splitlines(), self.line)
            self._lines = [(number, line) for number, line in numbered if line.strip()]
        taken, self._lines = self._lines[:count], self._lines[count:]
        return taken

    def _rows_with_lists(self, element: Element, text: bytes, first_line: int) -> tuple[Columns, Lists]:
        rows = [(number, line) for number, line in enumerate(text.splitlines(), first_line) if line.strip()]
        _check_count(element, len(rows))
        columns: dict[str, list[float]] = {own.name: [] for own in element.properties}
        lengths: dict[str, list[int]] = {own.name: [] for own in element.properties if own.length}
        for number, line in rows:
            words = iter(line.split())
            try:
                for own in element.properties:
                    length = int(next(words)) if own.length else 1
                    if own.length:
                        lengths[own.name].append(length)
                    columns[own.name].extend(float(next(words)) for _ in range(length))
                is_whole = next(words, None) is None
            except (StopIteration, RuntimeError, ValueError):  # RuntimeError: the words end within the generator
                is_whole = False
            if not is_whole:
                raise UnreadableFileError(
                    f"line {number} is no row of '{element.name}' as the header declares it: {shown(line)}"
                )
        arrays = {own.name: _typed(np.array(columns[own.name], np.float64), own) for own in element.properties}
        found = {name: (np.array(sizes, np.int64), arrays.pop(name)) for name, sizes in lengths.items()}
        return arrays, found


def _check_count(element: Element, held: int) -> None:
    if held != element.count:
        what = "it is cut off" if held < element.count else "its count is too small, or it holds two scans"
        raise UnreadableFileError(f"{what}: it declares {element.count} rows of '{element.name}' and holds {held}")


def _typed(values: Float64[np.ndarray, " rows"], own: Property) -> Shaped[np.ndarray, " rows"]:
    """Brings text to the type that the header declares; float64 stays, since text has no other precision."""
    if own.type.startswith("f"):
        return values if own.name in "xyz" else values.astype(own.type)
    with np.errstate(invalid="ignore"):
        typed = values.astype(own.type)
    if not np.array_equal(typed, values):
        raise UnreadableFileError(f"its field '{own.name}' holds numbers that are no '{own.type}'")
    return typed


def _triangles(
    lengths: Int64[np.ndarray, " faces"], values: Int64[np.ndarray, " corners"]
) -> tuple[Int64[np.ndarray, "triangles 3"], Int64[np.ndarray, " triangles"]]:
    """Cuts polygons into fans; returns (corners, the polygon of each triangle). Lines and points give none."""
    if (lengths == 3).all():
        return values.reshape(-1, 3), np.arange(len(lengths))
    starts = np.cumsum(lengths) - lengths
    sizes = np.maximum(lengths - 2, 0)
    owners = np.repeat(np.arange(len(lengths)), sizes)
    step = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = starts[owners]
    return np.stack([values[first], values[first + step + 1], values[first + step + 2]], axis=1), owners


def _strips(
    values: Int64[np.ndarray, " corners"], lengths: Int64[np.ndarray, " strips"]
) -> Int64[np.ndarray, "triangles 3"]:
    """Cuts strips, which end with their row or at a -1 within it (as in Stanford's scans), into triangles."""
    ended = np.insert(values, np.cumsum(lengths), -1)
    corners = np.stack([ended[:-2], ended[1:-1], ended[2:]], axis=1) if len(ended) > 2 else np.empty((0, 3), np.int64)
    return corners[(corners != -1).all(axis=1)]


def _whole(values: Shaped[np.ndarray, " corners"]) -> Int64[np.ndarray, " corners"]:
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if values.dtype.kind == "f" and not np.array_equal(whole, values):
        raise UnreadableFileError("a face names a vertex by a number that is not whole")
    return whole


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _struct(kind: str) -> str:
    return {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q", "f4": "f",
            "f8": "d"}[kind]  # fmt: skip


def write_ply(xyz: Float[np.ndarray, "points 3"], rgb: Float[np.ndarray, "points 3"]) -> bytes:
    """Returns a binary little-endian PLY file.

    Args:
        xyz: positions.
        rgb: colours in [0, 1], stored in 8 bits per channel.
    """
    vertices = np.empty(len(xyz), dtype=_PLY_DTYPE)
    for column, name in enumerate("xyz"):
        vertices[name] = xyz[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = np.rint(rgb[:, column].clip(0, 1) * 255)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    return "\n".join([*header, "end_header", ""]).encode() + vertices.tobytes()
