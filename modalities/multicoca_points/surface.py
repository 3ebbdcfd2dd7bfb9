"""Triangles with their colours, and points spread over them by area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from multicoca.reading import UnreadableFileError, refuse_broken, require
from multicoca_points.cloud import PointCloud

_FARTHEST = 1e12  # squares of it still have room in float64
_MAX_DROPPED_SHARE = 0.5


@dataclass(frozen=True)
class Surface:
    """Triangles of one material. A point's colour is the product of all colours that are given; none are no colour.

    Attributes:
        vertices: positions.
        corners: of each triangle, numbers of vertices.
        vertex_rgb: in [0, 1].
        face_rgb: in [0, 1].
        uv: texture coordinates of the three corners of each triangle, origin at the lower left.
        image: the texture, a Pillow image.
        factor: of all colours, in [0, 1].
        remarks: on its colours.
    """

    vertices: Float64[np.ndarray, "vertices 3"]
    corners: Int64[np.ndarray, "triangles 3"]
    vertex_rgb: Float32[np.ndarray, "vertices 3"] | None = None
    face_rgb: Float32[np.ndarray, "triangles 3"] | None = None
    uv: Float64[np.ndarray, "triangles 3 2"] | None = None
    image: Any = None
    factor: tuple[float, float, float] | None = None
    remarks: tuple[str, ...] = ()

    def areas(self) -> tuple[Float64[np.ndarray, " triangles"], int]:
        """Returns (area of each triangle, number of triangles with a corner that is not finite, whose area is 0)."""
        placed = self.vertices[self.corners]
        is_finite = np.isfinite(placed).all(axis=(1, 2))
        placed = np.where(is_finite[:, None, None], placed, 0.0)
        if placed.size and np.abs(placed).max() > _FARTHEST:
            raise UnreadableFileError(
                f"a corner of a face lies {np.abs(placed).max():.3g} from the origin; expected at most {_FARTHEST:g}"
            )
        sides = placed[:, 1:] - placed[:, :1]
        return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2, int((~is_finite).sum())

    def points(
        self, triangles: Int64[np.ndarray, " points"], weights: Float64[np.ndarray, "points 3"]
    ) -> tuple[Float64[np.ndarray, "points 3"], Float32[np.ndarray, "points 3"], tuple[str, ...]]:
        """Returns (positions, colours, remarks) of points given by triangle and barycentric weights."""
        corners = self.corners[triangles]
        xyz = np.einsum("nc,ncd->nd", weights, self.vertices[corners])
        parts, remarks = [], self.remarks
        if self.vertex_rgb is not None:
            parts.append(np.einsum("nc,ncd->nd", weights, self.vertex_rgb[corners].astype(np.float64)))
        if self.face_rgb is not None:
            parts.append(self.face_rgb[triangles])
        if self.uv is not None and self.image is not None:
            color = require("trimesh.visual.color", "points")
            place = np.einsum("nc,ncd->nd", weights, self.uv[triangles])
            try:
                with refuse_broken():
                    parts.append(color.uv_to_color(place, self.image)[:, :3] / 255)
            except UnreadableFileError as error:  # the shape of the scene is still known
                remarks = (*remarks, f"a texture cannot be read and is no colour: {error}")
                return xyz, np.full((len(xyz), 3), np.nan, np.float32), remarks
        if self.factor is not None:
            parts.append(np.broadcast_to(self.factor, (len(xyz), 3)))
        if not parts:
            return xyz, np.full((len(xyz), 3), np.nan, np.float32), remarks
        return xyz, np.prod(parts, axis=0).clip(0, 1).astype(np.float32), remarks


def sample_surfaces(surfaces: Sequence[Surface], num_points: int, seed: int) -> PointCloud:
    """Spreads points evenly over all triangles.

    Args:
        surfaces: at least one.
        num_points: how many points.
        seed: the same seed gives the same points.

    Raises:
        UnreadableFileError: there is no area, or too many triangles have a corner that is not finite.
    """
    measured = [surface.areas() for surface in surfaces]
    areas = np.concatenate([area for area, _ in measured]) if measured else np.empty(0)
    dropped = sum(number for _, number in measured)
    if dropped > _MAX_DROPPED_SHARE * len(areas):
        raise UnreadableFileError(f"{dropped} of its {len(areas)} triangles have a corner that is not finite")
    ends = np.cumsum(areas)
    if not len(ends) or ends[-1] <= 0:
        raise UnreadableFileError(f"it holds no surface: the area of its {len(areas)} triangles is 0")
    rng = np.random.default_rng(seed)
    chosen = np.searchsorted(ends, rng.random(num_points) * ends[-1], side="right").clip(0, len(areas) - 1)
    root, along = np.sqrt(rng.random(num_points)), rng.random(num_points)
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    xyz, rgb = np.empty((num_points, 3)), np.empty((num_points, 3), np.float32)
    remarks: list[str] = [f"{dropped} of {len(areas)} triangles have a corner that is not finite"] if dropped else []
    first = 0
    for surface in surfaces:
        last = first + len(surface.corners)
        here = np.flatnonzero((chosen >= first) & (chosen < last))
        xyz[here], rgb[here], said = surface.points(chosen[here] - first, weights[here])
        remarks += said
        first = last
    return PointCloud(xyz, None if np.isnan(rgb).all() else rgb, tuple(dict.fromkeys(remarks)))
