"""Clouds as plain rows of numbers: XYZ, XYZRGB and PTS.

Columns are x y z, then nothing, an intensity, or red green blue, or both. Values may be separated by commas or
semicolons, the first row may name the columns, and a file may begin with its number of points, as Leica's PTS do and
ShapeNet's do not.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float64

from multicoca.reading import UnreadableFileError
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import colors_from_fields, unit_colors
from multicoca_points.table import read_table

_COLOR_COLUMNS = {3: None, 4: None, 6: slice(3, 6), 7: slice(4, 7)}  # 4 and 7 have an intensity behind z
_BOM = b"\xef\xbb\xbf"
_BOMS_OF_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r|$)")
_COMMENT = (b"#", b"//", b";")
_WORD = re.compile(rb'[^\s,;"]+')
_UNIT_LENGTH = 1e-2  # tolerance of what is taken for normals


def read_text_scan(data: bytes, is_pts: bool) -> PointCloud:
    """Reads rows of numbers.

    Args:
        data: the file.
        is_pts: colours that are whole numbers are 0 to 255, even if none exceeds 1.

    Raises:
        UnreadableFileError: a row is broken, rows differ in length, or the count is not that of the rows.
    """
    if data.startswith(_BOMS_OF_UTF_16):
        data = data.decode("utf-16").encode()
    place = len(_BOM) if data.startswith(_BOM) else 0
    number, names, declared, is_remark = 1, None, None, False
    while place < len(data):
        line = _LINE.match(data, place)
        words = [word.decode("latin-1").lower() for word in _WORD.findall(line[1].lstrip(b"#/; \t"))]
        is_comment = line[1].lstrip().startswith(_COMMENT)
        if names is None and {"x", "y", "z"} <= set(words) and all(word[0].isalpha() for word in words):
            names, is_remark = words, is_comment
        elif declared is None and len(words) == 1 and words[0].isdecimal() and not is_comment:
            declared = int(words[0])
        elif words and not is_comment:
            break
        place, number = line.end(), number + 1
    first = _LINE.match(data, place)[1]
    text = data[place:]
    if b";" in first and b"," not in first:
        text = text.replace(b";", b",")
    table = read_table(text, number, b"," in first or b";" in first)
    if declared is not None and declared != len(table):
        what = "it is cut off" if len(table) < declared else "its count is too small, or it holds two scans"
        raise UnreadableFileError(f"{what}: it declares {declared} points and holds {len(table)} rows")
    if names is not None and len(names) != table.shape[1] and len(table):
        if not is_remark or table.shape[1] > 4:  # words about x, y and z do no harm where there is nothing else
            raise UnreadableFileError(f"{len(names)} columns are named ({' '.join(names)}), {table.shape[1]} are there")
        names = None
    return _cloud(table, names, is_pts)


def _cloud(table: Float64[np.ndarray, "rows columns"], names: list[str] | None, is_pts: bool) -> PointCloud:
    if len(table) == 0:
        raise UnreadableFileError("it holds no points")
    columns = table.shape[1]
    if names is not None:
        if len(set(names)) < columns:
            raise UnreadableFileError(f"a column is named twice: {' '.join(names)}")
        fields = {name: table[:, i] for i, name in enumerate(names)}
        rgb, remarks = colors_from_fields(fields, is_text=True)
        return PointCloud(np.stack([fields[axis] for axis in "xyz"], axis=1), rgb, remarks)
    if columns not in _COLOR_COLUMNS:
        allowed = ", ".join(map(str, _COLOR_COLUMNS))
        raise UnreadableFileError(
            f"its rows have {columns} values; expected {allowed}: x y z, an intensity or none, red green blue or none "
            "(a first row that names the columns allows any others)"
        )
    chosen = _COLOR_COLUMNS[columns]
    xyz = np.ascontiguousarray(table[:, :3])
    if chosen is None:
        return PointCloud(xyz)
    has_unit_length = (np.abs(np.linalg.norm(table[:, chosen], axis=1) - 1) < _UNIT_LENGTH).all()
    if has_unit_length and table[:, chosen].min() < 0:
        return PointCloud(xyz, None, ("its columns behind the positions are normals",))
    rgb, remarks = unit_colors(table[:, chosen], is_text=True, whole_bits=is_pts)
    if has_unit_length:
        remarks += ("its columns behind the positions are read as colours, but all have length 1 as normals do",)
    return PointCloud(xyz, rgb, remarks)
