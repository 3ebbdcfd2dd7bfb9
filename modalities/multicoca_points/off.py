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
    match = re.fullmatch(rb"(?:C?)(N?)OFF(?:\s+(.*)|(\d.*)|)", rows[0][1]) if rows else None
    if match is None:
        raise UnreadableFileError("it does not begin with OFF, COFF, NOFF or CNOFF")
    counts_there = match[2] or match[3]
    rows = [(rows[0][0], counts_there), *rows[1:]] if counts_there else rows[1:]
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
    first = 6 if match[1] else 3  # column of the colours; normals go before them
    if num_vertices == 0 or table.shape[1] not in (first, first + 3, first + 4):
        raise UnreadableFileError(
            f"its {num_vertices} vertices must have {first} values, or {first + 3} or {first + 4} with colours"
        )
    xyz = np.ascontiguousarray(table[:, :3])
    has_colors = table.shape[1] > first
    rgb, remarks = unit_colors(table[:, first : first + 3], is_text=True) if has_colors else (None, ())
    if num_faces == 0:
        return [], PointCloud(xyz, rgb, remarks)
    corners, behind = _faces(rows[1 + num_vertices :], num_vertices)
    face_rgb = None
    if any(behind) and rgb is None:
        if {len(words) for words in behind} <= {3, 4}:
            table = read_table(b"\n".join(b" ".join(words[:3]) for words in behind), 1)
            face_rgb, remarks = unit_colors(table, is_text=True)
        else:
            remarks = ("the colours of its faces are not read: not all have 3 or 4 channels",)
    return [Surface(xyz, corners, rgb, face_rgb, remarks=remarks)], None


def _faces(
    lines: list[tuple[int, bytes]], num_vertices: int
) -> tuple[Int64[np.ndarray, "triangles 3"], list[list[bytes]]]:
    """Returns (corners of all triangles, the values after the corners in each line); polygons become fans."""
    text = b"\n".join(line for _, line in lines)
    if not text.translate(None, b"0123456789 \t\n"):
        try:
            table = read_table(text, 1)
        except UnreadableFileError:
            table = np.empty((0, 0))  # faces of different sizes
        if table.shape == (len(lines), 4) and (table[:, 0] == 3).all() and table[:, 1:].max() < num_vertices:
            return table[:, 1:].astype(np.int64), []
    corners: list[tuple[int, int, int]] = []
    behind: list[list[bytes]] = []
    for number, line in lines:
        words = line.split()
        size = int(words[0]) if words[0].isdigit() and len(words[0]) < 9 else -1
        own = words[1 : 1 + size]
        if size < 0 or len(own) != size or not all(word.isdigit() and int(word) < num_vertices for word in own):
            raise UnreadableFileError(f"line {number} is no face of {num_vertices} vertices: {shown(line)}")
        places = [int(word) for word in own]
        corners += [(places[0], places[i], places[i + 1]) for i in range(1, size - 1)]
        behind += [words[1 + size :]] * max(size - 2, 0)
    return np.array(corners, np.int64).reshape(-1, 3), behind
