"""Reads files of points and meshes into a `PointCloud`: open3d for scans, trimesh for meshes, numpy for arrays.

open3d and trimesh are imported when a file first needs them. open3d is silent about broken files, so nothing it
returns is trusted before the declared size was checked and points were found. Points that are not finite are
dropped here, once.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from multicoca.modality import UnreadableFileError
from multicoca_points.cloud import PointCloud
from multicoca_points.declared import Declared, read_pcd_header, read_ply_header, read_pts_header
from multicoca_points.meshes import read_mesh
from multicoca_points.open3d_loader import load_open3d

SCAN_SUFFIXES = (".ply", ".pcd", ".xyz", ".xyzrgb", ".pts")
MESH_SUFFIXES = (".obj", ".glb", ".off", ".stl")
ARRAY_SUFFIXES = (".npy", ".npz")
SUFFIXES = SCAN_SUFFIXES + MESH_SUFFIXES + ARRAY_SUFFIXES

_HEADER_READERS: dict[str, Callable[[io.BufferedIOBase], Declared]] = {
    ".ply": read_ply_header,
    ".pcd": read_pcd_header,
    ".pts": read_pts_header,
}


def read_points(file: Path | bytes, suffix: str = "", num_surface_points: int = 10000, seed: int = 0) -> PointCloud:
    """Reads a point cloud, or samples the surface of a mesh.

    Args:
        file: a path, or the file's content.
        suffix: the format with its dot; needed for bytes, and overrides a path's own ending.
        num_surface_points: points that are sampled on a mesh. A PLY file is a mesh when it declares faces.
        seed: what the sampling of a mesh is drawn from.

    Raises:
        UnreadableFileError: the file is missing, broken, empty, of another kind, or has no finite point.
        ImportError: the package that reads the format is missing.
    """
    is_path = not isinstance(file, bytes)
    suffix = (suffix or (Path(file).suffix if is_path else "")).lower()
    name = str(file) if is_path else f"{suffix} data"
    try:
        if suffix not in SUFFIXES:
            raise UnreadableFileError(f"its ending is '{suffix}'; the endings are {', '.join(SUFFIXES)}")
        size = Path(file).stat().st_size if is_path else len(file)
        if size == 0:
            raise UnreadableFileError("it is empty (0 bytes)")
        if suffix in SCAN_SUFFIXES:
            cloud = _read_scan(file, suffix, num_surface_points, seed)
        elif suffix in MESH_SUFFIXES:
            cloud = read_mesh(file, suffix, num_surface_points, seed)
        else:
            cloud = _read_array(file)
        return _finite(cloud)
    except (UnreadableFileError, OSError) as error:
        raise UnreadableFileError(f"cannot read points from {name}: {error}") from error


def _finite(cloud: PointCloud) -> PointCloud:
    """Drops the points that are not finite."""
    if len(cloud.xyz) == 0:
        raise UnreadableFileError("it holds no points")
    finite = np.isfinite(cloud.xyz).all(axis=1)
    if finite.all():
        return cloud
    if not finite.any():
        raise UnreadableFileError(f"none of its {len(finite)} points is finite")
    return PointCloud(cloud.xyz[finite], None if cloud.rgb is None else cloud.rgb[finite])


def _read_scan(file: Path | bytes, suffix: str, num_surface_points: int, seed: int) -> PointCloud:
    """Reads with open3d, after the header's promise was compared with the file."""
    full_color = 255.0
    if suffix in _HEADER_READERS:
        try:
            with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
                declared = _HEADER_READERS[suffix](stream)
        except (ValueError, LookupError) as error:  # LookupError: a header line lacks a word or names another type
            raise UnreadableFileError(f"it is no {suffix} file: {error}") from error
        if declared.num_faces > 0:
            return read_mesh(file, suffix, num_surface_points, seed)
        if declared.missing:
            raise UnreadableFileError(f"it is cut off: {declared.missing}")
        full_color = declared.full_color
    if isinstance(file, bytes):
        with tempfile.TemporaryDirectory() as folder:  # open3d reads only .xyz from memory
            path = Path(folder) / f"points{suffix}"
            path.write_bytes(file)
            read = _run_open3d(path, suffix)
    else:
        read = _run_open3d(file, suffix)
    xyz = np.asarray(read.points, dtype=np.float32)
    if not read.has_colors():
        return PointCloud(xyz)
    rgb = np.asarray(read.colors, dtype=np.float32)
    if full_color != 255.0:  # open3d divides by 255, whatever the type
        rgb = rgb * np.float32(255.0 / full_color)
        rgb = rgb / np.float32(255) if rgb.max() > 1 else rgb  # floats from 0 to 255 exist too
    return PointCloud(xyz, rgb.clip(0, 1))


def _run_open3d(path: Path, suffix: str) -> Any:
    """Lets open3d read, without its warnings on the console."""
    open3d = load_open3d()
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        return open3d.io.read_point_cloud(str(path), format=suffix.removeprefix("."))


def _read_array(file: Path | bytes) -> PointCloud:
    """Reads [N, 3] or [N, 6] from .npy, or the keys xyz or points, and rgb or colors, from .npz."""
    try:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"xyz": loaded}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableFileError(f"numpy cannot read it: {error}") from error
    xyz = next((arrays[key] for key in ("xyz", "points") if key in arrays), None)
    rgb = next((arrays[key] for key in ("rgb", "colors") if key in arrays), None)
    if xyz is None:
        raise UnreadableFileError(f"its keys are {sorted(arrays)}; positions must be under 'xyz' or 'points'")
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
    return PointCloud(xyz.astype(np.float32), None if rgb is None else _unit_colors(rgb))


def _unit_colors(rgb: np.ndarray) -> np.ndarray:
    """Brings colours to [0, 1]: integers are 0 to 255, floats either."""
    values = rgb.astype(np.float32)
    finite = values[np.isfinite(values)]
    if finite.size and (finite.min() < 0 or finite.max() > 255):
        raise UnreadableFileError(
            f"its colours go from {finite.min():.4g} to {finite.max():.4g}; they must lie in [0, 1] or [0, 255] "
            "(are columns 4 to 6 normals? Then keep only the first three)"
        )
    in_bytes = rgb.dtype.kind in "iu" or (finite.size > 0 and finite.max() > 1)
    return values / np.float32(255) if in_bytes else values
