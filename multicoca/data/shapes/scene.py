"""Scenes of the shapes world: one to three coloured solids in a cube of space, drawn from a seed.

Axes: x to the right, y away from the viewer, z up; positions lie in [-1, 1]. A scene is independent of any
modality: a front view shows x and z, a clip adds the motion, a point cloud adds the depth y. Some pairs of
colour and shape never occur in training; the composition split is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "test", "composition"]

SHAPES = ("ball", "cube", "cone", "ring", "cross")
COLORS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.55, 0.05),
    "yellow": (0.95, 0.87, 0.10),
    "green": (0.12, 0.62, 0.20),
    "blue": (0.12, 0.32, 0.88),
    "purple": (0.56, 0.18, 0.68),
    "black": (0.08, 0.08, 0.10),
}
SIZES = {"small": 0.18, "large": 0.32}  # radius, in units of the scene
MOTIONS = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, 0, 1), "down": (0, 0, -1)}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
HELD_OUT = frozenset({("red", "ring"), ("yellow", "cube"), ("green", "ball"), ("blue", "cross"), ("purple", "cone")})

TRAVEL = 0.6  # length of a motion
MARGIN = 0.3  # two objects stand in a relation when they are at least this far apart along its axis
_CELL = 0.56  # distance of the outer places from the centre
_JITTER = 0.1
_SPLIT_CODES = {"train": 0, "test": 1, "composition": 2}


@dataclass(frozen=True)
class SceneObject:
    """A solid: its `shape`, `color` and `size` are words; `position` is the centre (x, y, z)."""

    shape: str
    color: str
    size: str
    position: tuple[float, float, float]

    @property
    def radius(self) -> float:
        """Half the extent, in units of the scene."""
        return SIZES[self.size]

    @property
    def place(self) -> str:
        """The words for its place in the front view."""
        x, _, z = self.position
        row = 0 if z > _CELL / 2 else 2 if z < -_CELL / 2 else 1
        column = 0 if x < -_CELL / 2 else 2 if x > _CELL / 2 else 1
        return PLACES[row][column]


@dataclass(frozen=True)
class Scene:
    """One to three objects, in the order in which a caption names them, and what moves.

    Attributes:
        objects: from left to right, from top to bottom within a column.
        motion: (index of the moving object, a key of MOTIONS), or None when nothing moves.
        seed: what colours, background and sampling noise are drawn from.
    """

    objects: tuple[SceneObject, ...]
    motion: tuple[int, str] | None
    seed: tuple[int, ...]

    def position_at(self, index: int, time: float) -> np.ndarray:
        """Returns the centre (x, y, z) of an object at a time from 0 (start) to 1 (end)."""
        position = np.asarray(self.objects[index].position)
        if self.motion is not None and self.motion[0] == index:
            position = position + np.asarray(MOTIONS[self.motion[1]]) * TRAVEL * (time - 0.5)
        return position


def draw_scene(seed: int, split: Split, index: int) -> Scene:
    """Draws the scene number `index` of a split; a pure function of its arguments.

    Half of the scenes have one object, 35% two, 15% three. In the composition split the first object that was
    drawn has a colour and shape that never occur together in the others.
    """
    key = (seed, _SPLIT_CODES[split], index)
    rng = np.random.default_rng(key)
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    looks = _draw_looks(rng, count, held_out=split == "composition")
    while True:  # a few tries on average: objects must not hide each other, nor stand in no clear relation
        cells = rng.choice(9, size=count, replace=False)
        positions = np.empty((count, 3))
        positions[:, 0] = (cells % 3 - 1) * _CELL
        positions[:, 2] = (1 - cells // 3) * _CELL
        positions[:, (0, 2)] += rng.uniform(-_JITTER, _JITTER, size=(count, 2))
        positions[:, 1] = rng.permutation([-0.6, 0.6, 0.0])[:count] + rng.uniform(-_JITTER, _JITTER, size=count)
        if count == 1:
            positions[0, 1] = rng.choice([-0.6, 0.6]) + rng.uniform(-_JITTER, _JITTER)
        objects = [SceneObject(*look, tuple(map(float, place))) for look, place in zip(looks, positions, strict=True)]
        motion = (int(rng.integers(count)), str(rng.choice(list(MOTIONS)))) if rng.random() < 0.8 else None
        if _all_visible(objects, motion):
            break
    order = sorted(range(count), key=lambda i: (round(objects[i].position[0] / _CELL), -objects[i].position[2]))
    if motion is not None:
        motion = (order.index(motion[0]), motion[1])
    return Scene(tuple(objects[i] for i in order), motion, key)


def _draw_looks(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str, str]]:
    """Draws (shape, color, size) for each object; no two share both colour and shape."""
    usual = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT]
    pairs = [usual[i] for i in rng.choice(len(usual), size=count, replace=False)]
    if held_out:
        pairs[0] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
    return [(shape, color, str(rng.choice(list(SIZES)))) for color, shape in pairs]


def _all_visible(objects: list[SceneObject], motion: tuple[int, str] | None) -> bool:
    """Whether no object covers much of another in the front view, at the start, middle and end of the motion."""
    scene = Scene(tuple(objects), motion, ())
    for first in range(len(objects)):
        for second in range(first):
            reach = 0.9 * (objects[first].radius + objects[second].radius)
            for time in (0.0, 0.5, 1.0):
                gap = np.abs(scene.position_at(first, time) - scene.position_at(second, time))[[0, 2]]
                if np.hypot(*gap) < reach:
                    return False
    return True
