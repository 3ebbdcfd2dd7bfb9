"""What a scene looks like: its front view as pixels, its surfaces as coloured points.

Modalities turn these into files of their kind. Both show the same solids: a ball, a cube, a cone standing on
its base, a ring facing the viewer, and an upright cross.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from multicoca.data.shapes.scene import COLORS, Scene

VIEW_EXTENT = 1.25  # the front view shows x and z from -VIEW_EXTENT to VIEW_EXTENT
_SUPERSAMPLING = 3
_BAR = 0.34  # half thickness of the cross's bars, in radii


def front_view(scene: Scene, time: float = 0.5, size_px: int = 64) -> np.ndarray:
    """Draws the scene as seen from the front.

    Args:
        scene: what to draw.
        time: the moment of the motion, 0 at its start and 1 at its end; 0.5 is the scene at rest.
        size_px: height and width of the picture.

    Returns:
        uint8 array of shape [size_px, size_px, 3].
    """
    rng = np.random.default_rng((*scene.seed, 1))
    axis = _axis(size_px)
    tilt = rng.uniform(-0.08, 0.08, size=2)
    shade = rng.uniform(0.62, 0.9) + tilt[0] * axis + tilt[1] * -axis[:, None]
    picture = shade[..., None] + rng.uniform(-0.04, 0.04, size=3)
    colors = _colors(scene)
    for index in sorted(range(len(scene.objects)), key=lambda i: -scene.objects[i].position[1]):  # far ones first
        x, _, z = scene.position_at(index, time)
        _paint(picture, _SILHOUETTES[scene.objects[index].shape], x, z, scene.objects[index].radius, colors[index])
    picture += rng.normal(0, 0.012, size=picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def _axis(size: int) -> np.ndarray:
    """Returns the coordinates of the cell centres across the view."""
    return ((np.arange(size) + 0.5) / size * 2 - 1) * VIEW_EXTENT


def _paint(picture: np.ndarray, silhouette: Callable, x: float, z: float, radius: float, color: np.ndarray) -> None:
    """Blends one solid into the picture by its coverage of each pixel; only the pixels around it are touched."""
    size = len(picture)
    to_px = size / (2 * VIEW_EXTENT)
    left, right = int((x - radius + VIEW_EXTENT) * to_px), int((x + radius + VIEW_EXTENT) * to_px) + 1
    top, bottom = int((VIEW_EXTENT - z - radius) * to_px), int((VIEW_EXTENT - z + radius) * to_px) + 1
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, size), min(bottom, size)
    if left >= right or top >= bottom:
        return
    axis = _axis(size * _SUPERSAMPLING)
    across = (axis[left * _SUPERSAMPLING : right * _SUPERSAMPLING] - x) / radius
    up = (-axis[top * _SUPERSAMPLING : bottom * _SUPERSAMPLING, None] - z) / radius
    inside = silhouette(*np.broadcast_arrays(across, up)).astype(np.float64)
    coverage = inside.reshape(bottom - top, _SUPERSAMPLING, right - left, _SUPERSAMPLING).mean(axis=(1, 3))[..., None]
    light = 1 + 0.12 * (up - across)[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING]
    patch = picture[top:bottom, left:right]
    patch += coverage * (color * light[..., None] - patch)


def surface_points(scene: Scene, num_points: int = 2048, noise: float = 0.008) -> tuple[np.ndarray, np.ndarray]:
    """Samples the surfaces of a scene at rest.

    Args:
        scene: what to sample.
        num_points: points over all objects, shared out by radius.
        noise: standard deviation of the positions, in units of the scene.

    Returns:
        (positions [num_points, 3] as (x, y, z) with z up, colours [num_points, 3] in [0, 1]), float32.
    """
    rng = np.random.default_rng((*scene.seed, 2))
    radii = np.array([target.radius for target in scene.objects])
    counts = np.floor(num_points * radii / radii.sum()).astype(int)
    counts[0] += num_points - counts.sum()
    colors = _colors(scene)
    positions, paints = [], []
    for target, count, color in zip(scene.objects, counts.tolist(), colors, strict=True):
        points = _SURFACES[target.shape](rng, count)
        positions.append(np.asarray(target.position) + target.radius * points)
        paints.append(color * rng.uniform(0.92, 1.04, size=(count, 1)))
    xyz = np.concatenate(positions) + rng.normal(0, noise, size=(num_points, 3))
    shuffled = rng.permutation(num_points)
    return xyz[shuffled].astype(np.float32), np.concatenate(paints)[shuffled].clip(0, 1).astype(np.float32)


def _colors(scene: Scene) -> np.ndarray:
    """Returns the objects' colours [objects, 3], each a little off its name's."""
    rng = np.random.default_rng((*scene.seed, 3))
    named = np.array([COLORS[target.color] for target in scene.objects])
    return (named + rng.uniform(-0.05, 0.05, size=named.shape)).clip(0, 1)


def _cross_silhouette(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    along, across = np.maximum(np.abs(right), np.abs(up)), np.minimum(np.abs(right), np.abs(up))
    return (along < 1) & (across < _BAR)


_SILHOUETTES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": lambda right, up: np.hypot(right, up) < 1,
    "cube": lambda right, up: np.maximum(np.abs(right), np.abs(up)) < 0.85,
    "cone": lambda right, up: (np.abs(up) < 1) & (np.abs(right) < (1 - up) / 2),
    "ring": lambda right, up: np.abs(np.hypot(right, up) - 0.75) < 0.25,
    "cross": _cross_silhouette,
}


def _ball(rng: np.random.Generator, count: int) -> np.ndarray:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _box(rng: np.random.Generator, count: int, half: tuple[float, float, float]) -> np.ndarray:
    """Samples the surface of a box with the given half extents along x, y and z."""
    extent = np.asarray(half)
    areas = np.prod(extent) / extent  # of a face across each axis, up to a factor
    axis = rng.choice(3, size=count, p=areas / areas.sum())
    points = rng.uniform(-1, 1, size=(count, 3))
    points[np.arange(count), axis] = rng.choice([-1, 1], size=count)
    return points * extent


def _cube(rng: np.random.Generator, count: int) -> np.ndarray:
    return _box(rng, count, (0.85, 0.85, 0.85))


def _cone(rng: np.random.Generator, count: int) -> np.ndarray:
    """A cone of height 2 and base radius 1, its base included by its share of the surface."""
    slant = np.sqrt(5)
    on_base = rng.random(count) < 1 / (1 + slant)
    radius, angle = np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    height = np.where(on_base, -1.0, 1 - 2 * radius)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def _ring(rng: np.random.Generator, count: int) -> np.ndarray:
    around, tube = rng.uniform(0, 2 * np.pi, size=(2, count))
    distance = 0.75 + 0.25 * np.cos(tube)
    return np.stack([distance * np.cos(around), 0.25 * np.sin(tube), distance * np.sin(around)], axis=1)


def _cross(rng: np.random.Generator, count: int) -> np.ndarray:
    upright = _box(rng, count, (_BAR, _BAR, 1.0))
    lying = _box(rng, count, (1.0, _BAR, _BAR))
    return np.where(rng.random((count, 1)) < 0.5, upright, lying)


_SURFACES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "ball": _ball,
    "cube": _cube,
    "cone": _cone,
    "ring": _ring,
    "cross": _cross,
}
