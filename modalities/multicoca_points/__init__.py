"""The points modality: point clouds and meshes, read by open3d and trimesh, encoded as groups of points."""

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
