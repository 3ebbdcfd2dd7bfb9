"""Meshes in OFF files, every line of which is parsed or refused.

Source: the Object File Format of Geomview's manual; ModelNet's files have the counts behind OFF in the first line.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int64

from multicoca.reading import UnreadableFileError
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import unit_colors
from multicoca_points.surface import Surface
from multicoca_points.table import read_table, shown


def read_off(data: bytes) -> tuple[list[Surface], PointCloud | None]:
    """Reads an OFF file, with or without colours of its vertices.

    Returns:
        (its surface, or the vertices as a cloud when there are no faces).
    """
    rows = [
        (number, content)
        for number, line in enumerate(data.splitlines(), 1)
        if (content := line.partition(b"#")[0].strip())
    ]
    match = re.fullmatch(rb"(?:ST)?(C?)(N?)OFF\s*(.*)", rows[0][1]) if rows else None
    if match is None or match[2]:
        raise UnreadableFileError("it does not begin with OFF or COFF")
    rows = [(rows[0][0], match[3]), *rows[1:]] if match[3] else rows[1:]
    counts = rows[0][1].split() if rows else []
    if not 2 <= len(counts) <= 3 or not all(word.isdigit() and len(word) < 19 for word in counts):
        raise UnreadableFileError("its second line does not hold the numbers of vertices, faces and edges")
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    if len(rows) - 1 != num_vertices + num_faces:
        raise UnreadableFileError(
            f"it declares {num_vertices} vertices and {num_faces} faces and holds {len(rows) - 1} lines"
        )
    first_line = rows[1][0] if num_vertices else 0
    table = read_table(b"\n".join(line for _, line in rows[1 : 1 + num_vertices]), first_line)
    if num_vertices == 0 or table.shape[1] not in (3, 6, 7):
        raise UnreadableFileError(f"its {num_vertices} vertices must have 3 values, or 6 or 7 with colours")
    xyz = np.ascontiguousarray(table[:, :3])
    rgb, remarks = (None, ()) if table.shape[1] == 3 else unit_colors(table[:, 3:6], is_text=True)
    if num_faces == 0:
        return [], PointCloud(xyz, rgb, remarks)
    corners = _faces(rows[1 + num_vertices :], num_vertices)
    return [Surface(xyz, corners, rgb, remarks=remarks)], None


def _faces(lines: list[tuple[int, bytes]], num_vertices: int) -> Int64[np.ndarray, "triangles 3"]:
    """Returns the corners of all triangles; polygons become fans, and colours behind them are left out."""
    text = b"\n".join(line for _, line in lines)
    if not text.translate(None, b"0123456789 \t\n"):
        try:
            table = read_table(text, 1)
        except UnreadableFileError:
            table = np.empty((0, 0))  # faces of different sizes
        if table.shape == (len(lines), 4) and (table[:, 0] == 3).all() and table[:, 1:].max() < num_vertices:
            return table[:, 1:].astype(np.int64)
    corners: list[tuple[int, int, int]] = []
    for number, line in lines:
        words = line.split()
        size = int(words[0]) if words[0].isdigit() and len(words[0]) < 9 else -1
        own = words[1 : 1 + size]
        if size < 0 or len(own) != size or not all(word.isdigit() and int(word) < num_vertices for word in own):
            raise UnreadableFileError(f"line {number} is no face of {num_vertices} vertices: {shown(line)}")
        places = [int(word) for word in own]
        corners += [(places[0], places[i], places[i + 1]) for i in range(1, size - 1)]
    return np.array(corners, np.int64).reshape(-1, 3)
