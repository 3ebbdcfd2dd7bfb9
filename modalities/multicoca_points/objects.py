"""Clouds in memory: arrays and tensors, read by the rules for numpy's files.

This is apart from `arrays` because it imports torch, which a process that only decodes files does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from multicoca.modality import as_array
from multicoca.reading import UnreadableFileError
from multicoca_points.arrays import COLORS, POSITIONS, cloud_from_arrays
from multicoca_points.cloud import PointCloud

OBJECTS = (
    "an array or tensor [points, 3], or [points, 6] with colours, or a mapping of such positions "
    f"({', '.join(POSITIONS)}) and colours ({', '.join(COLORS)}), for example {{'points': xyz, 'colors': rgb}}"
)


def is_cloud(value: Any) -> bool:
    """Whether a value is a cloud, or has the shape or the keys of one."""
    if isinstance(value, Mapping):
        return any(key in POSITIONS for key in value)
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim == 2 and value.shape[1] in (3, 6)
    return isinstance(value, PointCloud)


def cloud_of(value: Any) -> PointCloud:
    """Turns a cloud in memory into what the readers return for an .npy or .npz file of it.

    Raises:
        UnreadableFileError: it is no cloud, or its shape, type, keys or colours are wrong.
    """
    if isinstance(value, PointCloud):
        return value
    if not isinstance(value, Mapping):
        return cloud_from_arrays(_array(value), None)
    positions = [key for key in value if key in POSITIONS]
    colors = [key for key in value if key in COLORS]
    if len(positions) != 1 or len(colors) > 1 or len(positions) + len(colors) < len(value):
        raise UnreadableFileError(f"got a mapping with the keys {', '.join(map(repr, value))}; expected {OBJECTS}")
    rgb = value[colors[0]] if colors else None
    return cloud_from_arrays(_array(value[positions[0]]), None if rgb is None else _array(rgb))


def _array(value: Any) -> np.ndarray:
    array = as_array(value)
    if array is None:
        raise UnreadableFileError(f"got {type(value).__name__}; expected {OBJECTS}")
    return array
