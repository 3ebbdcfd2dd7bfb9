"""Clouds and meshes for `reading.py`, written by open3d, trimesh and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write(folder: Path, num_points: int) -> None:
    """Writes `cloud.*` files of coloured points and `mesh.*` files of a sphere."""
    import trimesh
    from multicoca_points import load_open3d

    open3d = load_open3d()
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(size=(num_points, 3)), rng.random((num_points, 3))
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz))
    cloud.colors = open3d.utility.Vector3dVector(rgb)
    options = {"xyz": {}, "xyzrgb": {}, "pts": {}, "binary.ply": {}, "binary.pcd": {}}
    options |= {"ascii.ply": {"write_ascii": True}, "ascii.pcd": {"write_ascii": True}}
    options["compressed.pcd"] = {"compressed": True}
    for name, own in options.items():
        open3d.io.write_point_cloud(str(folder / f"cloud.{name}"), cloud, **own)
    np.save(folder / "cloud.npy", np.concatenate([xyz, rgb], axis=1).astype(np.float32))
    np.savez(folder / "cloud.npz", xyz=xyz, rgb=rgb)
    for size, subdivisions in (("small", 2), ("large", 5)):
        sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
        for suffix in ("obj", "glb", "off", "stl", "ply"):
            sphere.export(folder / f"mesh.{size}.{suffix}")
        (folder / f"mesh.{size}_text.stl").write_text(trimesh.exchange.stl.export_stl_ascii(sphere))
