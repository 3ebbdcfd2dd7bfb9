"""Points on the surface of a mesh file, with the colours of its vertices, faces or textures (trimesh).

Points are spread by area over all meshes of a file, each mesh moved to its place in the scene graph. The seed
makes the points of a file the same every time. A file without faces gives its vertices.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from multicoca.modality import UnreadableFileError, require
from multicoca_points.cloud import PointCloud

# what trimesh's parsers raise on broken files of the formats that this package reads
_PARSE_ERRORS = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError, EOFError, NotImplementedError,
    struct.error,
)  # fmt: skip


def read_mesh(file: Path | bytes, suffix: str, num_points: int, seed: int) -> PointCloud:
    """Reads a mesh file and samples its surface.

    Args:
        file: a path, or the file's content. Materials in files beside it are found only by a path.
        suffix: the format, e.g. ".glb".
        num_points: how many points to sample.
        seed: what the sampling is drawn from.

    Raises:
        UnreadableFileError: the file is broken or has no points.
        ImportError: trimesh is missing.
    """
    trimesh = require("trimesh", "points")
    source = io.BytesIO(file) if isinstance(file, bytes) else str(file)
    try:
        scene = trimesh.load_scene(source, file_type=suffix.removeprefix("."))
        parts = [(scene.geometry[name], matrix) for matrix, name in map(scene.graph.get, scene.graph.nodes_geometry)]
        meshes = [_Placed(mesh, matrix) for mesh, matrix in parts if isinstance(mesh, trimesh.Trimesh)]
        clouds = [_Placed(cloud, matrix) for cloud, matrix in parts if isinstance(cloud, trimesh.PointCloud)]
        areas = np.array([mesh.face_areas(trimesh).sum() for mesh in meshes])
        if areas.sum() > 0:
            rng = np.random.default_rng(seed)
            counts = rng.multinomial(num_points, areas / areas.sum()).tolist()
            sampled = [_sample(trimesh, mesh, count, rng) for mesh, count in zip(meshes, counts, strict=True) if count]
        else:
            sampled = [
                (cloud.vertices, _paint(trimesh, cloud.geometry.colors, len(cloud.vertices))) for cloud in clouds
            ]
    except _PARSE_ERRORS as error:
        raise UnreadableFileError(f"trimesh cannot read it as {suffix}: {error}") from error
    if not sampled:
        raise UnreadableFileError(f"it holds no surface and no points that trimesh can read as {suffix}")
    xyz = np.concatenate([points for points, _ in sampled])
    rgb = np.concatenate([colors for _, colors in sampled])
    return PointCloud(xyz.astype(np.float32), None if np.isnan(rgb).all() else rgb)


class _Placed:
    """A geometry and its vertices where the scene graph puts them.

    trimesh's own `dump` does the same, but copies colours in a way that needs scipy.
    """

    def __init__(self, geometry: Any, matrix: np.ndarray) -> None:
        self.geometry = geometry
        self.vertices = np.asarray(geometry.vertices) @ matrix[:3, :3].T + matrix[:3, 3]

    def face_areas(self, trimesh: Any) -> np.ndarray:
        """Returns the area of each face; faces with a vertex that is not finite have none."""
        areas = trimesh.triangles.area(self.vertices[self.geometry.faces])
        return np.where(np.isfinite(areas), areas, 0.0)


def _sample(trimesh: Any, placed: _Placed, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns points on one mesh and their colours."""
    mesh = placed.geometry
    _, faces, weights = trimesh.sample.sample_surface(
        mesh, count, face_weight=placed.face_areas(trimesh), return_barycentric=True, seed=rng
    )
    corners = mesh.faces[faces]
    points = np.einsum("nc,ncd->nd", weights, placed.vertices[corners])
    if mesh.visual.kind == "vertex":
        colors = np.einsum("nc,ncd->nd", weights, mesh.visual.vertex_colors[corners].astype(np.float64)).round()
    elif mesh.visual.kind == "face":
        colors = mesh.visual.face_colors[faces]
    elif mesh.visual.kind == "texture":
        material, uv = mesh.visual.material, mesh.visual.uv
        colors = None if uv is None else material.to_color(np.einsum("nc,ncd->nd", weights, uv[corners]))
        colors = material.main_color if colors is None else colors
    else:
        colors = None
    return points, _paint(trimesh, colors, count)


def _paint(trimesh: Any, colors: np.ndarray | None, count: int) -> np.ndarray:
    """Turns trimesh's colours (none, one, or one per point) into float32 [count, 3] in [0, 1], NaN for none."""
    if colors is None or len(colors) == 0:
        return np.full((count, 3), np.nan, dtype=np.float32)
    colors = np.asarray(colors)
    rgba = trimesh.visual.color.to_rgba(colors.astype(np.uint8) if colors.ndim == 2 else colors)
    return np.broadcast_to(rgba[..., :3] / np.float32(255), (count, 3)).astype(np.float32)
