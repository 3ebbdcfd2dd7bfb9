"""Meshes in OBJ files, every line of which is parsed or refused.

trimesh's reader of this format leaves out lines that it does not understand and cuts rows to the shortest, without a
word, so it is not used here; nor are its readers of OFF and STL in `off` and `stl`.

Source: Wavefront's "Advanced Visualizer" manual, appendix B1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

from multicoca.reading import UnreadableFileError, refuse_broken
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import unit_colors
from multicoca_points.surface import Surface
from multicoca_points.table import read_table, shown

_OBJ_KEYWORDS = (b"v", b"vt", b"f", b"usemtl", b"mtllib")
_UNREAD_SHAPES = (b"surf", b"call", b"csh")  # a curved surface, another file, the output of a command
_BOM = b"\xef\xbb\xbf"
_MOVING_OPTIONS = {"-s", "-o", "-t", "-mm"}  # of a texture: they change where it lies, or its colours
_CORNER = re.compile(rb"-?\d+(?:/(?:-?\d+)?){0,2}")


def read_obj(data: bytes, folder: Path | None) -> tuple[list[Surface], PointCloud | None]:
    """Reads a Wavefront OBJ file.

    Args:
        data: its content.
        folder: where its materials and textures lie; None when they are out of reach.

    Returns:
        (a surface for each material, or the vertices as a cloud when there are no faces).
    """
    lines = _obj_lines(data)
    vertices, rgb, remarks = _obj_vertices(lines[b"v"])
    texture = _rows(lines[b"vt"], "vt")
    materials = _materials(lines[b"mtllib"], folder)
    if not lines[b"f"]:
        return [], PointCloud(vertices, rgb, remarks)
    uses = [number for number, _ in lines[b"usemtl"]]
    groups: dict[str | None, list[tuple[int, bytes]]] = {}
    place, name = 0, None
    for number, rest in lines[b"f"]:
        while place < len(uses) and uses[place] < number:
            name, place = lines[b"usemtl"][place][1].decode("latin-1").strip(), place + 1
        groups.setdefault(name, []).append((number, rest))
    counts = _Counts(lines, len(vertices), len(texture))
    surfaces = []
    for name, faces in groups.items():
        corners, uv_corners = _obj_faces(faces, counts)
        uv = texture[uv_corners, :2] if uv_corners is not None and texture.shape[1] >= 2 else None
        image, factor, said = materials.get(name, (None, None, ())) if name is not None else (None, None, ())
        if name is not None and name not in materials and rgb is None:
            said = ("a material is not there, so its faces have no colour",)
        if image is not None and uv is None:
            image, said = None, ("a texture without coordinates is no colour",)
        color = factor if image is None and rgb is None else None
        surfaces.append(Surface(vertices, corners, rgb, None, uv, image, color, (*remarks, *said)))
    return surfaces, None


class _Counts:
    """How many vertices and texture coordinates stand above a line, which negative numbers count back from."""

    def __init__(self, lines: dict[bytes, list[tuple[int, bytes]]], vertices: int, coordinates: int):
        self.totals = (vertices, coordinates)
        self._lines = tuple(np.array([number for number, _ in lines[key]], np.int64) for key in (b"v", b"vt"))

    def resolve(self, number: int, index: int, which: int) -> int:
        """Returns the place of a vertex (which = 0) or coordinate (1), from 0."""
        place = index - 1 if index > 0 else int(np.searchsorted(self._lines[which], number)) + index
        if index == 0 or not 0 <= place < self.totals[which]:
            what = ("vertices", "texture coordinates")[which]
            raise UnreadableFileError(f"line {number} names number {index} of {self.totals[which]} {what}")
        return place


def _obj_lines(data: bytes) -> dict[bytes, list[tuple[int, bytes]]]:
    """Returns (line number, what follows the keyword) of the lines of each keyword that is used."""
    found: dict[bytes, list[tuple[int, bytes]]] = {keyword: [] for keyword in _OBJ_KEYWORDS}
    data = data.removeprefix(_BOM)
    text = data.replace(b"\\\r\n", b"   ").replace(b"\\\n", b"  ") if b"\\" in data else data
    for number, line in enumerate(text.splitlines(), 1):
        keyword, _, rest = line.strip().replace(b"\t", b" ").partition(b" ")
        if keyword in found:
            found[keyword].append((number, rest))
        elif keyword in _UNREAD_SHAPES:
            raise UnreadableFileError(f"line {number} is '{keyword.decode()}', a kind of shape that is not read")
        elif keyword and not keyword.startswith(b"#") and not re.fullmatch(rb"[a-zA-Z_]+", keyword):
            raise UnreadableFileError(f"line {number} is no line of an OBJ file: {shown(line)}")
    if not found[b"v"]:
        raise UnreadableFileError("it holds no vertices")
    return found


def _rows(lines: Sequence[tuple[int, bytes]], keyword: str) -> Float64[np.ndarray, "rows columns"]:
    """Parses the rows of one keyword; blank lines keep the numbers of the lines."""
    if not lines:
        return np.empty((0, 0))
    text = b"\n".join(rest.partition(b"#")[0] for _, rest in lines)
    try:
        table = read_table(text, 1)
    except UnreadableFileError as error:
        raise UnreadableFileError(f"of its '{keyword}' lines, {error}") from error
    if len(table) != len(lines):
        raise UnreadableFileError(f"{len(lines) - len(table)} of its {len(lines)} '{keyword}' lines are empty")
    return table


def _obj_vertices(
    lines: Sequence[tuple[int, bytes]],
) -> tuple[Float64[np.ndarray, "vertices 3"], np.ndarray | None, tuple[str, ...]]:
    table = _rows(lines, "v")
    if table.shape[1] not in (3, 4, 6, 7):
        raise UnreadableFileError(f"its vertices have {table.shape[1]} values; expected 3, 4, 6 or 7")
    xyz = np.ascontiguousarray(table[:, :3])
    if table.shape[1] < 6:
        return xyz, None, ()
    return xyz, *unit_colors(table[:, -3:], is_text=True)


def _obj_faces(
    lines: Sequence[tuple[int, bytes]], counts: _Counts
) -> tuple[Int64[np.ndarray, "triangles 3"], Int64[np.ndarray, "triangles 3"] | None]:
    """Returns (vertices, texture coordinates or None) of the corners of all triangles; polygons become fans."""
    quick = _plain_triangles(lines, counts)
    if quick is not None:
        return quick
    corners: list[tuple[int, int, int]] = []
    coordinates: list[tuple[int, int, int]] = []
    has_uv = True
    for number, rest in lines:
        words = rest.partition(b"#")[0].split()
        if len(words) < 3 or not all(_CORNER.fullmatch(word) for word in words):
            raise UnreadableFileError(f"line {number} is no face: {shown(rest)}")
        parts = [word.split(b"/") for word in words]
        own = [counts.resolve(number, int(part[0]), 0) for part in parts]
        corners += [(own[0], own[i], own[i + 1]) for i in range(1, len(own) - 1)]
        has_uv = has_uv and all(len(part) > 1 and part[1] for part in parts)
        if has_uv:
            own = [counts.resolve(number, int(part[1]), 1) for part in parts]
            coordinates += [(own[0], own[i], own[i + 1]) for i in range(1, len(own) - 1)]
    return np.array(corners, np.int64).reshape(-1, 3), np.array(coordinates, np.int64).reshape(
        -1, 3
    ) if has_uv else None


def _plain_triangles(
    lines: Sequence[tuple[int, bytes]], counts: _Counts
) -> tuple[Int64[np.ndarray, "triangles 3"], Int64[np.ndarray, "triangles 3"] | None] | None:
    """Parses faces that are all triangles of one form with positive numbers, or returns None."""
    text = b"\n".join(rest for _, rest in lines)
    if text.translate(None, b"0123456789/ \n\r"):
        return None
    per_corner = lines[0][1].split()[0].count(b"/") + 1 if lines[0][1].split() else 0
    if b"//" in text or text.count(b"/") != 3 * (per_corner - 1) * len(lines):
        return None
    try:
        table = read_table(text.replace(b"/", b" "), 1)
    except UnreadableFileError:
        return None
    if table.shape != (len(lines), 3 * per_corner) or re.search(rb"(?:^|[\s/])(?:/|$)|/\s", text):
        return None
    numbers = table.astype(np.int64).reshape(len(lines), 3, per_corner)
    found = []
    for which in range(min(per_corner, 2)):
        places = np.ascontiguousarray(numbers[:, :, which]) - 1
        if places.min() < 0 or places.max() >= counts.totals[which]:
            return None  # the plain way names the line
        found.append(places)
    return found[0], found[1] if len(found) > 1 else None


Material = tuple[Image.Image | None, tuple[float, float, float] | None, tuple[str, ...]]  # texture, colour, remarks


def _materials(lines: Sequence[tuple[int, bytes]], folder: Path | None) -> dict[str, Material]:
    """Reads the material files beside an OBJ file: diffuse colours and textures, a texture going before a colour."""
    found: dict[str, Material] = {}
    for path in _material_files(lines, folder) if folder is not None else ():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            continue  # the faces say that their material is not there
        current = None
        for line in text.splitlines():
            keyword, _, rest = line.replace("\t", " ").strip().partition(" ")
            if keyword == "newmtl":
                current = rest.strip()
                found[current] = (None, None, ())
            elif keyword.lower() == "kd" and current is not None:
                found[current] = (found[current][0], _diffuse(rest), found[current][2])
            elif keyword.lower() == "map_kd" and current is not None:
                image, remarks = _texture(folder, rest.strip())
                found[current] = (image, None if image is None else found[current][1], remarks)
    return {name: (image, None if remarks else color, remarks) for name, (image, color, remarks) in found.items()}


def _material_files(lines: Sequence[tuple[int, bytes]], folder: Path) -> list[Path]:
    """A line names one file, with blanks in its name or not, or several."""
    found = []
    for _, rest in lines:
        name = rest.decode("utf-8", "replace").strip()
        found += [folder / name] if (folder / name).is_file() else [folder / word for word in name.split()]
    return found


def _diffuse(words: str) -> tuple[float, float, float] | None:
    try:
        channels = [float(word) for word in words.split()[:3]]
    except ValueError:  # 'spectral' or 'xyz' and a curve
        return None
    if len(channels) == 1:  # the manual: red alone stands for all
        channels *= 3
    return (channels[0], channels[1], channels[2]) if len(channels) == 3 else None


def _texture(folder: Path, name: str) -> tuple[Image.Image | None, tuple[str, ...]]:
    try:
        with refuse_broken():
            name = name.replace("\\", "/")  # Windows
            path = folder / name
            if not path.is_file():
                *options, last = name.split()
                if _MOVING_OPTIONS.intersection(options):
                    return None, (f"a texture is no colour: its options {' '.join(options)} are not read",)
                path = folder / last
            image = Image.open(io.BytesIO(path.read_bytes()))
            image.load()
            return image, ()
    except UnreadableFileError as error:  # the shape of the scene is still known
        return None, (f"a texture cannot be read and is no colour: {error}",)
