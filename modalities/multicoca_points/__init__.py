"""The points modality: point clouds and meshes, read exactly and encoded as groups of points.

Its names are imported when they are asked for (PEP 562), so that a process that only decodes does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multicoca_points.cloud import PointCloud
    from multicoca_points.encoder import PointEncoder
    from multicoca_points.grouping import farthest_point_sample, nearest_neighbors
    from multicoca_points.open3d_loader import load_open3d
    from multicoca_points.processor import PointsAugmentation, PointsProcessor
    from multicoca_points.reader import read_points
    from multicoca_points.thumbnail import draw_points

__all__ = [
    "PointCloud", "PointEncoder", "PointsAugmentation", "PointsProcessor",
    "draw_points", "farthest_point_sample", "load_open3d", "nearest_neighbors", "read_points",
]  # fmt: skip
TARGETS = {"processor": ("PointsProcessor",), "encoder": ("PointEncoder",), "part": ("PointsAugmentation",)}

_MODULES = {
    "PointCloud": "cloud", "PointEncoder": "encoder", "PointsAugmentation": "processor",
    "PointsProcessor": "processor", "draw_points": "thumbnail", "farthest_point_sample": "grouping",
    "load_open3d": "open3d_loader", "nearest_neighbors": "grouping", "read_points": "reader",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'multicoca_points' has no attribute '{name}'")
    return getattr(importlib.import_module(f"multicoca_points.{_MODULES[name]}"), name)
