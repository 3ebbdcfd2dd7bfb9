"""Clouds in numpy's files: what a header declares is compared with the file before memory is taken for it.

An .npy file holds [N, 3], or [N, 6] with colours, or rows of named fields; an .npz file holds positions and colours
under the usual names.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
from jaxtyping import Shaped

from multicoca.reading import UnreadableFileError
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import colors_from_fields, unit_colors

POSITIONS = ("xyz", "points", "positions", "coords", "coord", "vertices", "pc", "pos")
COLORS = ("rgb", "colors", "color", "colours")
_MOST_GROWTH = 200  # of a zip member; measured clouds compress to a half, one of equal points by 1000
_SMALL = 2**24


def read_npy(data: bytes) -> PointCloud:
    """Reads an .npy file.

    Raises:
        UnreadableFileError: it is broken, or its shape or type is no cloud's.
    """
    array = _array(data)
    if array.dtype.names:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        fields = {name.lower(): array[name] for name in array.dtype.names}
        if not {"x", "y", "z"} <= fields.keys() or array.ndim != 1:
            raise UnreadableFileError(f"its fields are {sorted(fields)}; expected rows with x, y and z")
        return PointCloud(positions(np.stack([fields[axis] for axis in "xyz"], axis=1)), *colors_from_fields(fields))
    return cloud_from_arrays(array, None)


def read_npz(data: bytes) -> PointCloud:
    """Reads an .npz file; arrays that are no positions or colours are not touched.

    Raises:
        UnreadableFileError: it is broken, or holds no positions under a known name.
    """
    if not data.startswith((b"PK\3\4", b"PK\5\6")):  # zip files may have anything before them, .npz files may not
        raise UnreadableFileError("it does not begin as an .npz file does")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()}
        found = [next((key for key in keys if key in members), None) for keys in (POSITIONS, COLORS)]
        if found[0] is None:
            raise UnreadableFileError(
                f"its keys are {sorted(members)[:20]}; positions must be under {', '.join(map(repr, POSITIONS))}"
            )
        xyz, rgb = (None if key is None else _array(_member(archive, members[key], len(data))) for key in found)
    return cloud_from_arrays(xyz, rgb)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, held: int) -> bytes:
    if info.file_size > max(_SMALL, _MOST_GROWTH * held):
        raise UnreadableFileError(
            f"its array '{info.filename}' would take {info.file_size} bytes, {info.file_size // held} times the file"
        )
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise UnreadableFileError(f"its array '{info.filename}' has another size than the archive declares")
    return content


def _array(data: bytes) -> Shaped[np.ndarray, ...]:
    """Returns an array that takes no more memory than its file."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UnreadableFileError(f"it is of version {version} of numpy's format, which is not known")
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise UnreadableFileError("it holds Python objects, which are not loaded (allow_pickle=False)")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not 0 <= size <= len(data) - file.tell() or any(length < 0 for length in shape):
        raise UnreadableFileError(
            f"it is cut off: its array of shape {list(shape)} takes {size} bytes, {len(data) - file.tell()} are there"
        )
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if is_fortran else "C")


def cloud_from_arrays(xyz: np.ndarray, rgb: np.ndarray | None) -> PointCloud:
    """Makes a cloud of positions [points, 3] and colours [points, 3], or of both in one array [points, 6].

    Raises:
        UnreadableFileError: a shape, a type or the colours are wrong.
    """
    for array in (xyz, rgb):
        if array is not None and array.dtype.kind not in "fiu":
            raise UnreadableFileError(f"its type is {array.dtype}; it must be numbers")
    if xyz.ndim != 2 or xyz.shape[1] not in (3, 6):
        raise UnreadableFileError(
            f"its shape is {list(xyz.shape)}; it must be [points, 3], or [points, 6] with colours"
        )
    if xyz.shape[1] == 6:
        xyz, rgb = xyz[:, :3], xyz[:, 3:]
    if rgb is not None and rgb.shape != xyz.shape:
        raise UnreadableFileError(f"its colours have shape {list(rgb.shape)}; they must have {list(xyz.shape)}")
    return PointCloud(positions(xyz), *((None, ()) if rgb is None else unit_colors(rgb)))


def positions(xyz: Shaped[np.ndarray, "points 3"]) -> Shaped[np.ndarray, "points 3"]:
    """Returns positions in float64, whatever their type."""
    return np.ascontiguousarray(xyz, dtype=np.float64)
