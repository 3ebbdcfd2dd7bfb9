"""Points on the surface of a mesh file, with the colours of its vertices, faces or textures.

Points are spread by area over all meshes of a file, each mesh moved to its place in the scene. The seed makes the
points of a file the same every time. A file without faces gives its vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from multicoca.isolated import run_isolated
from multicoca.reading import UnreadableFileError
from multicoca_points.cloud import PointCloud
from multicoca_points.colors import colors_from_fields
from multicoca_points.obj import read_obj
from multicoca_points.off import read_off
from multicoca_points.ply import Ply
from multicoca_points.stl import read_stl
from multicoca_points.surface import Surface, sample_surfaces

Parsed = tuple[list[Surface], PointCloud | None]


def read_mesh(file: Path | bytes, suffix: str, num_points: int, seed: int) -> PointCloud:
    """Reads a mesh file and samples its surface.

    Args:
        file: a path, or the file's content. Materials in files beside it are found only by a path.
        suffix: the format, e.g. ".glb".
        num_points: how many points to sample.
        seed: what the sampling is drawn from.

    Raises:
        UnreadableFileError: the file is broken or has no points.
        ImportError: a package that reads the format is missing.
    """
    size = len(file) if isinstance(file, bytes) else Path(file).stat().st_size
    if size == 0:
        raise UnreadableFileError("it is empty (0 bytes)")
    if suffix == ".glb":
        return run_isolated("multicoca_points.gltf:sample_glb", file, num_points, seed, file_bytes=size)
    surfaces, cloud = _PARSERS[suffix](file)
    return cloud if cloud is not None else sample_surfaces(surfaces, num_points, seed)


def sample_ply(cloud: PointCloud, ply: Ply, num_points: int, seed: int) -> PointCloud:
    """Samples the faces of a PLY file whose vertices are a cloud; colours of vertices go before those of faces."""
    face_rgb, remarks = (None, ()) if cloud.rgb is not None else colors_from_fields(ply.face_fields)
    if any("texturefile" in comment.lower() for comment in ply.comments):
        remarks += ("its texture is not read",)
    surface = Surface(cloud.xyz, ply.corners, cloud.rgb, face_rgb, remarks=(*cloud.remarks, *remarks))
    return sample_surfaces([surface], num_points, seed)


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


_PARSERS: dict[str, Callable[[Path | bytes], Parsed]] = {
    ".obj": lambda file: read_obj(_content(file), None if isinstance(file, bytes) else Path(file).parent),
    ".off": lambda file: read_off(_content(file)),
    ".stl": lambda file: ([read_stl(_content(file))], None),
}
