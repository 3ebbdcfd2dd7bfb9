"""What trimesh leaves out of a glTF scene: skins, morph targets, instances, and the indices of points.

The decision: all of it is put into plain meshes and nodes before trimesh reads the file, in the pose that a viewer
shows before any animation runs.

Source: the glTF 2.0 specification (Khronos), sections 3.5.3 (transformations), 3.7.2.2 (morph targets) and 3.7.3
(skins); EXT_mesh_gpu_instancing for instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from multicoca.reading import UnreadableFileError

INSTANCING = "EXT_mesh_gpu_instancing"
_POINTS = 0
_PARTS = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}

Read = Callable[[int], np.ndarray]  # gives the values of an accessor [count, components], fractions as floats
Add = Callable[[np.ndarray], int]  # takes values [count, components] as floats, gives the number of their accessor


def apply_pose_(header: dict[str, Any], read: Read, add: Add) -> None:
    """Changes a header so that its meshes lie and are shaped as a viewer shows them.

    Raises:
        UnreadableFileError: a skin names a joint that is not in the scene.
    """
    nodes, meshes = header.get("nodes", []), header.get("meshes", [])
    for mesh in meshes:
        for primitive in mesh["primitives"]:
            if primitive.get("mode") == _POINTS and "indices" in primitive:
                _select_points_(primitive, read, add)
    scenes = header.get("scenes", [])
    roots = scenes[header.get("scene", 0)].setdefault("nodes", []) if scenes else _without_parent(nodes)
    places = _places(nodes, roots)
    for number in places:
        node = nodes[number]
        if "mesh" not in node:
            continue
        mesh = meshes[node["mesh"]]
        weights = node.get("weights", mesh.get("weights", []))
        joints = _joint_matrices(header["skins"][node.pop("skin")], places, read) if "skin" in node else None
        if joints is not None or any(weights):
            primitives = [_posed(primitive, weights, joints, read, add) for primitive in mesh["primitives"]]
            meshes.append({**mesh, "primitives": primitives})
            node["mesh"] = len(meshes) - 1
        if joints is not None:  # only its joints place a skinned mesh
            roots.append(len(nodes))
            nodes.append({"mesh": node.pop("mesh")})
        elif INSTANCING in node.get("extensions", {}):
            attributes = node["extensions"][INSTANCING]["attributes"]
            parts = {own: read(attributes[name]) for name, own in _PARTS.items() if name in attributes}
            own_mesh, count = node.pop("mesh"), max(map(len, parts.values()), default=0)
            node["children"] = [*node.get("children", []), *range(len(nodes), len(nodes) + count)]
            nodes += [
                {"mesh": own_mesh, **{name: values[i].tolist() for name, values in parts.items()}} for i in range(count)
            ]


def _without_parent(nodes: Sequence[dict[str, Any]]) -> list[int]:
    children = {child for node in nodes for child in node.get("children", [])}
    return [number for number in range(len(nodes)) if number not in children]


def _select_points_(primitive: dict[str, Any], read: Read, add: Add) -> None:
    chosen, attributes = read(primitive.pop("indices"))[:, 0].astype(np.int64), primitive["attributes"]
    for name in ("POSITION", "COLOR_0"):
        if name in attributes:
            attributes[name] = add(read(attributes[name])[chosen])


def _places(nodes: Sequence[dict[str, Any]], roots: Sequence[int]) -> dict[int, Float64[np.ndarray, "4 4"]]:
    """Returns the global matrix of each node of a scene."""
    places: dict[int, np.ndarray] = {}
    left = [(root, np.eye(4)) for root in roots]
    while left:
        number, parent = left.pop()
        if number in places:
            raise UnreadableFileError(f"node {number} has two parents")
        places[number] = parent @ _local_matrix(nodes[number])
        left += [(child, places[number]) for child in nodes[number].get("children", [])]
    return places


def _local_matrix(node: dict[str, Any]) -> Float64[np.ndarray, "4 4"]:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _joint_matrices(
    skin: dict[str, Any], places: dict[int, Float64[np.ndarray, "4 4"]], read: Read
) -> Float64[np.ndarray, "joints 4 4"]:
    absent = [joint for joint in skin["joints"] if joint not in places]
    if absent:
        raise UnreadableFileError(f"a skin names node {absent[0]} as a joint, which is not in the scene")
    matrices = np.stack([places[joint] for joint in skin["joints"]])
    if "inverseBindMatrices" not in skin:
        return matrices
    bind = read(skin["inverseBindMatrices"])[: len(matrices)].astype(np.float64)
    return matrices @ bind.reshape(-1, 4, 4).transpose(0, 2, 1)


def _posed(
    primitive: dict[str, Any],
    weights: Sequence[float],
    joints: Float64[np.ndarray, "joints 4 4"] | None,
    read: Read,
    add: Add,
) -> dict[str, Any]:
    """Returns a primitive with its targets and its skin in its positions."""
    attributes = primitive["attributes"]
    xyz = read(attributes["POSITION"]).astype(np.float64)
    for weight, target in zip(weights, primitive.get("targets", []), strict=False):  # missing weights are 0
        if weight and "POSITION" in target:
            xyz += weight * read(target["POSITION"])
    if joints is not None:
        sets = [number for number in range(len(attributes)) if f"JOINTS_{number}" in attributes]
        if not sets:
            raise UnreadableFileError("a mesh with a skin has no JOINTS_0, the joints of its vertices")
        which = np.concatenate([read(attributes[f"JOINTS_{number}"]) for number in sets], axis=1).astype(np.int64)
        share = np.concatenate([read(attributes[f"WEIGHTS_{number}"]) for number in sets], axis=1).astype(np.float64)
        share[share.sum(axis=1) == 0, 0] = 1  # as three.js does
        share /= share.sum(axis=1, keepdims=True)
        placed = np.zeros_like(xyz)
        for column in range(which.shape[1]):
            matrices = joints[which[:, column], :3]
            moved = np.einsum("nij,nj->ni", matrices[:, :, :3], xyz) + matrices[:, :, 3]
            placed += share[:, column, None] * moved
        xyz = placed
    return {**primitive, "attributes": {**attributes, "POSITION": add(xyz)}}
