"""Reads files of points and meshes into a `PointCloud`, exactly or not at all.

Scans and arrays are parsed from the types that they declare; every declared row must be there. Meshes go through
trimesh. The points that are not finite are dropped here, once, counted and bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from multicoca.reading import UnreadableFileError, refuse_broken
from multicoca_points.arrays import positions, read_npy, read_npz
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import colors_from_fields
from multicoca_points.meshes import read_mesh, sample_ply
from multicoca_points.pcd import read_pcd
from multicoca_points.ply import read_ply
from multicoca_points.text_scans import read_text_scan

SCAN_SUFFIXES = (".ply", ".pcd", ".xyz", ".xyzrgb", ".pts")
MESH_SUFFIXES = (".obj", ".glb", ".off", ".stl")
ARRAY_SUFFIXES = (".npy", ".npz")
SUFFIXES = SCAN_SUFFIXES + MESH_SUFFIXES + ARRAY_SUFFIXES

_MAGIC = (
    *((b"ply" + end, ".ply") for end in (b"\n", b"\r", b" ", b"\t")),
    (b"# .PCD", ".pcd"),
    (b"glTF", ".glb"),
    (b"\x93NUMPY", ".npy"),
    (b"PK\3\4", ".npz"),
)
_OFF = re.compile(rb"C?N?OFF[\s\d]")
_STL = re.compile(rb"\s*solid\b[^\r\n]*\s*(facet|endsolid)\b", re.IGNORECASE)

MAX_DROPPED_SHARE = 0.5
_FARTHEST = 1e12  # in the file's unit; the earth's orbit in metres, beyond which a number is an error


def read_points(
    file: Path | bytes,
    suffix: str = "",
    num_surface_points: int = 10000,
    seed: int = 0,
    max_dropped_share: float = MAX_DROPPED_SHARE,
) -> PointCloud:
    """Reads a point cloud, or samples the surface of a mesh.

    Args:
        file: a path, or the file's content.
        suffix: the format with its dot; needed for bytes, and overrides a path's own ending.
        num_surface_points: points that are sampled on a mesh. A PLY file is a mesh when it declares faces.
        seed: what the sampling of a mesh is drawn from.
        max_dropped_share: largest share of points that are not finite, which are dropped (as depth cameras write them).

    Raises:
        UnreadableFileError: the file is missing, broken, empty, of another kind, or holds too few finite points.
        ImportError: the package that reads the format is missing.
    """
    is_path = not isinstance(file, bytes)
    suffix = (suffix or (Path(file).suffix if is_path else "")).lower()
    with refuse_broken(f"cannot read points from {file if is_path else f'{suffix} data'}"):
        if suffix not in SUFFIXES:
            raise UnreadableFileError(f"its ending is '{suffix}'; the endings are {', '.join(SUFFIXES)}")
        if suffix in MESH_SUFFIXES:
            return finite(read_mesh(file, suffix, num_surface_points, seed), max_dropped_share)
        data = Path(file).read_bytes() if is_path else file
        if not data:
            raise UnreadableFileError("it is empty (0 bytes)")
        if suffix == ".ply":
            return finite(_read_ply(data, num_surface_points, seed), max_dropped_share)
        return finite(_PARSERS[suffix](data), max_dropped_share)


def suffix_of(head: bytes) -> str:
    """Returns the suffix of a file by its first bytes, "" for others; text without a header is not recognised."""
    magic = next((suffix for start, suffix in _MAGIC if head.startswith(start)), "")
    if magic:
        return magic
    if _OFF.match(head):
        return ".off"
    if _STL.match(head):
        return ".stl"
    keys = [line.split()[0] for line in head.splitlines() if line.split() and not line.startswith(b"#")]
    return ".pcd" if keys[:1] == [b"VERSION"] and b"FIELDS" in keys else ""


def _read_ply(data: bytes, num_surface_points: int, seed: int) -> PointCloud:
    ply = read_ply(data)
    cloud = _named(ply.vertices)
    if ply.corners is None or len(ply.corners) == 0:
        return cloud
    return sample_ply(cloud, ply, num_surface_points, seed)


def _named(fields: dict[str, np.ndarray]) -> PointCloud:
    """Makes a cloud of named fields."""
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise UnreadableFileError(f"it has no field {', '.join(missing)}; its fields are {', '.join(fields) or 'none'}")
    axes = [fields[axis] for axis in "xyz"]
    return PointCloud(positions(np.stack(axes, axis=1)), *colors_from_fields(fields))


def finite(cloud: PointCloud, max_dropped_share: float) -> PointCloud:
    """Drops the points that are not finite.

    Raises:
        UnreadableFileError: there are no points, too many are not finite, or one is too far away.
    """
    count = len(cloud.xyz)
    if count == 0:
        raise UnreadableFileError("it holds no points")
    if cloud.xyz.min() >= -_FARTHEST and cloud.xyz.max() <= _FARTHEST:  # not where there is a NaN
        return cloud
    is_finite = np.isfinite(cloud.xyz).all(axis=1)
    num_finite = int(is_finite.sum())
    if num_finite == 0:
        raise UnreadableFileError(f"none of its {count} points is finite")
    if num_finite < count:
        if count - num_finite > max_dropped_share * count:
            raise UnreadableFileError(
                f"{count - num_finite} of its {count} points are not finite, more than the share of "
                f"{max_dropped_share:g} that the processor's max_dropped_share allows"
            )
        rgb = None if cloud.rgb is None else cloud.rgb[is_finite]
        remark = f"{count - num_finite} of {count} points are not finite and were dropped"
        cloud = PointCloud(cloud.xyz[is_finite], rgb, (*cloud.remarks, remark))
    far = np.abs(cloud.xyz).max(axis=1)
    if far.max() > _FARTHEST:
        raise UnreadableFileError(
            f"point {int(far.argmax()) + 1} lies {far.max():.3g} from the origin; expected at most {_FARTHEST:g}"
        )
    return cloud


_PARSERS: dict[str, Callable[[bytes], PointCloud]] = {
    ".pcd": lambda data: _named(read_pcd(data)),
    ".xyz": lambda data: read_text_scan(data, is_pts=False),
    ".xyzrgb": lambda data: read_text_scan(data, is_pts=False),
    ".pts": lambda data: read_text_scan(data, is_pts=True),
    ".npy": read_npy,
    ".npz": read_npz,
}
