"""Draws a small picture of a point cloud with numpy: no graphics driver, safe in any process.

Points are splatted far to near at twice the resolution, seen from the front, a little from the right and above.
Depth shows by a shadow on the floor and by darkened edges where the depth jumps.

Source: eye-dome lighting, Boucheny, PhD thesis (2009), section 3.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

_AZIMUTH, _ELEVATION = math.radians(-28), math.radians(24)
_BACKGROUND = (0.96, 0.96, 0.95)
_FLOOR = (0.91, 0.91, 0.90)
_SHADOW = (0.76, 0.76, 0.76)
_SUPERSAMPLING = 2
_MAX_POINTS = 30000  # more do not show at this size
_EDGE_STRENGTH = 1.2
_MAX_DROP = 0.15  # jumps in depth count up to this share of the scene's radius


def draw_points(
    xyz: Float[np.ndarray, "points 3"],
    rgb: Float32[np.ndarray, "points 3"],
    extent: float | None = None,
    size_px: int = 160,
) -> Image.Image:
    """Draws points that have z up and y away from the viewer.

    Args:
        xyz: finite positions, at least one.
        rgb: colours in [0, 1].
        extent: half the side of the cube around the origin that the picture shows; None fits the cloud.
        size_px: height and width of the picture.
    """
    step = -(-len(xyz) // _MAX_POINTS)
    xyz, rgb = xyz[::step].astype(np.float64), rgb[::step]
    low, high = (xyz.min(axis=0), xyz.max(axis=0)) if extent is None else (np.full(3, -extent), np.full(3, extent))
    center = (low + high) / 2
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, 8).T
    radius = max(float(np.abs(_rotate(corners - center)[:, :2]).max()), 1e-9)
    fine = size_px * _SUPERSAMPLING

    def project(points: np.ndarray) -> np.ndarray:
        """Returns (column, row, depth); depth in radii of the scene."""
        return _rotate((points - center) / radius) * (fine * 0.46, -fine * 0.46, 1) + (fine / 2, fine / 2, 0)

    picture, depth = np.full((fine, fine, 3), _BACKGROUND), np.full((fine, fine), np.inf)
    points = project(xyz)
    dot_px = _dot_size(points, fine)
    reach_px = max(3, fine // 60)
    floor_z = low[2] - 0.02 * radius
    floor = np.column_stack([xyz[:, :2], np.full(len(xyz), floor_z)])
    _fill_floor(picture, project(_floor_grid(low, high, floor_z, fine)))
    _splat(picture, depth, project(floor), np.broadcast_to(_SHADOW, rgb.shape), dot_px)
    depth.fill(np.inf)  # the floor lies below every point and takes no part in the shading
    _splat(picture, depth, points, rgb, dot_px)
    picture *= _edge_light(depth, reach_px)[..., None]
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    return image.resize((size_px, size_px), Image.Resampling.BOX)


def _rotate(points: np.ndarray) -> np.ndarray:
    """Turns (x right, y away, z up) into the camera's (right, up, away)."""
    x, y, z = points.T
    right = math.cos(_AZIMUTH) * x - math.sin(_AZIMUTH) * y
    away = math.sin(_AZIMUTH) * x + math.cos(_AZIMUTH) * y
    up = math.cos(_ELEVATION) * z + math.sin(_ELEVATION) * away
    return np.stack([right, up, math.cos(_ELEVATION) * away - math.sin(_ELEVATION) * z], axis=1)


def _dot_size(points: np.ndarray, fine: int) -> int:
    """Chooses the side of a point's square so that a surface closes: by the points per occupied cell."""
    cell = max(fine // 24, 1)
    occupied = len(np.unique(points[:, :2] // cell, axis=0)) * cell**2
    return int(np.clip(round(2.7 * math.sqrt(occupied / len(points))), 2, fine // 20))


def _floor_grid(low: np.ndarray, high: np.ndarray, floor_z: float, count: int) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(low[0], high[0], count), np.linspace(low[1], high[1], count))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, floor_z)], axis=1)


def _fill_floor(picture: np.ndarray, points: np.ndarray) -> None:
    columns, rows = points[:, :2].astype(int).clip(0, len(picture) - 1).T
    picture[rows, columns] = _FLOOR


def _splat(picture: np.ndarray, depth: np.ndarray, points: np.ndarray, colors: np.ndarray, dot_px: int) -> None:
    """Paints squares, far ones first, so that near ones cover them."""
    order = np.argsort(-points[:, 2], kind="stable")
    offsets = np.arange(dot_px) - dot_px // 2
    down, across = (grid.ravel() for grid in np.meshgrid(offsets, offsets, indexing="ij"))
    columns = points[order, 0, None].astype(int) + across
    rows = points[order, 1, None].astype(int) + down
    inside = (columns >= 0) & (columns < len(picture)) & (rows >= 0) & (rows < len(picture))
    pixels = (rows * len(picture) + columns)[inside]
    nearest = np.full(depth.size, -1)
    nearest[pixels] = np.broadcast_to(order[:, None], inside.shape)[inside]  # the last write to a pixel stays
    seen = np.flatnonzero(nearest >= 0)
    picture.reshape(-1, 3)[seen] = colors[nearest[seen]]
    depth.ravel()[seen] = points[nearest[seen], 2]


def _edge_light(depth: np.ndarray, reach_px: int) -> np.ndarray:
    """Returns a factor per pixel: darker where neighbours lie nearer, a little lighter where they lie farther."""
    light = np.zeros_like(depth)
    known = np.isfinite(depth)
    for down, across in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        other = np.roll(depth, (down * reach_px, across * reach_px), axis=(0, 1))
        both = known & np.isfinite(other)
        light[both] += (other[both] - depth[both]).clip(-_MAX_DROP, _MAX_DROP / 4)
    return np.exp(_EDGE_STRENGTH * light)
