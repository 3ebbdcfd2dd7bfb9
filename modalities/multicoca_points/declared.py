"""How many points a PLY, PCD or PTS file declares, and whether the file really holds them; and a PLY writer.

open3d gives a cloud of the declared size whose tail is uninitialised memory when a file is cut off, and says so
only on the console. So the declared size is compared with the file before open3d reads it.

Source: the PLY format (Turk, 1994), the PCD 0.7 specification of the Point Cloud Library.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

_PLY_BYTES = {
    "char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
    "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8,
}  # fmt: skip
_FULL_COLOR = {"ushort": 65535.0, "uint16": 65535.0, "float": 1.0, "float32": 1.0, "double": 1.0, "float64": 1.0}
_MAX_HEADER_LINES = 1000
_PLY_DTYPE = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


@dataclass(frozen=True)
class Declared:
    """What a file's header says.

    Attributes:
        num_points: how many points the file should hold.
        num_faces: how many faces the file should hold.
        full_color: the stored value of a full colour channel.
        missing: what the file lacks of the declared points, in words, or "" when all are there.
    """

    num_points: int
    num_faces: int = 0
    full_color: float = 255.0
    missing: str = ""


def read_ply_header(file: io.BufferedIOBase) -> Declared:
    """Reads the header of a PLY file that is open at its start.

    Raises:
        ValueError: the header is not one of a PLY file with vertices.
    """
    if file.readline(16).strip() != b"ply":
        raise ValueError("it does not start with the line 'ply'")
    encoding, elements = "", []
    for _ in range(_MAX_HEADER_LINES):
        words = file.readline(4096).decode("latin-1").split()
        if words[:1] == ["format"]:
            encoding = words[1]
        elif words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
        elif words[:1] == ["end_header"]:
            break
    else:
        raise ValueError("its header does not end")
    counts = {name: count for name, count, _ in elements}
    if "vertex" not in counts:
        raise ValueError(f"its header declares no vertices, only {sorted(counts)}")
    types = {prop[-1]: prop[0] for name, _, props in elements if name == "vertex" for prop in props}
    missing = _missing_ply_points(file, encoding, elements)
    return Declared(counts["vertex"], counts.get("face", 0), _FULL_COLOR.get(types.get("red", ""), 255.0), missing)


def _missing_ply_points(
    file: io.BufferedIOBase, encoding: str, elements: list[tuple[str, int, list[list[str]]]]
) -> str:
    """Compares the rest of the file with the elements up to the vertices. Lists have no known size: no check."""
    num_values = num_bytes = num_rows = 0
    for name, count, properties in elements:
        if any(prop[0] == "list" for prop in properties):
            return ""
        num_rows += count
        num_values += count * len(properties)
        num_bytes += count * sum(_PLY_BYTES[prop[0]] for prop in properties)
        if name == "vertex":
            break
    if encoding == "ascii":
        return _missing_rows(file.read(), num_rows, num_values)
    start = file.tell()
    held = file.seek(0, 2) - start
    return f"its points take {num_bytes} bytes, {held} are there" if held < num_bytes else ""


def read_pcd_header(file: io.BufferedIOBase) -> Declared:
    """Reads the header of a PCD file that is open at its start; checks the size of ascii data (open3d checks binary).

    Raises:
        ValueError: the header is not one of a PCD file.
    """
    fields: dict[str, list[str]] = {}
    for _ in range(_MAX_HEADER_LINES):
        words = file.readline(4096).decode("latin-1").split()
        if words and not words[0].startswith("#"):
            fields[words[0]] = words[1:]
        if words[:1] == ["DATA"]:
            break
    if not {"FIELDS", "POINTS", "DATA"} <= fields.keys():
        raise ValueError("its header lacks FIELDS, POINTS or DATA")
    num_points = int(fields["POINTS"][0])
    num_values = num_points * sum(map(int, fields.get("COUNT", ["1"] * len(fields["FIELDS"]))))
    missing = _missing_rows(file.read(), num_points, num_values) if fields["DATA"] == ["ascii"] else ""
    return Declared(num_points, missing=missing)


def read_pts_header(file: io.BufferedIOBase) -> Declared:
    """Reads the first line of a PTS file, its number of points, and checks that they are there.

    Raises:
        ValueError: the first line is not a number.
    """
    num_points = int(file.readline(4096))
    start = file.tell()
    num_columns = len(file.readline(4096).split())
    file.seek(start)
    return Declared(num_points, missing=_missing_rows(file.read(), num_points, num_points * num_columns))


def _missing_rows(data: bytes, num_rows: int, num_values: int) -> str:
    """Says what text data lacks. Complete lines suffice; else the values are counted, as the end of line is free."""
    if data.count(b"\n") >= num_rows:
        return ""
    held = len(data.split())
    return f"its points take {num_values} numbers, {held} are there" if held < num_values else ""


def write_ply(xyz: np.ndarray, rgb: np.ndarray) -> bytes:
    """Returns a binary little-endian PLY file.

    Args:
        xyz: positions [points, 3].
        rgb: colours [points, 3] in [0, 1], stored in 8 bits per channel.
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
