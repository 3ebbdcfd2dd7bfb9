"""GLB files through trimesh, after a check that it will read all of them.

trimesh reads integers that stand for fractions as they are, fills what it cannot decode with zeros, takes what a header
declares for true, and leaves out textures that it cannot read. So the header is checked against the file first, an
extension that is required and unknown is refused by its name, arrays that trimesh would misread are rewritten as
floats, and poses are applied (`gltf_pose`). This module runs in a process that can be lost.

Source: the glTF 2.0 specification (Khronos), sections 3.6 (accessors), 3.9 (materials) and 4 (GLB);
KHR_mesh_quantization for the integers.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np

from multicoca.reading import UnreadableFileError, require
from multicoca_points.cloud import PointCloud
from multicoca_points.gltf_pose import INSTANCING, apply_pose_
from multicoca_points.surface import Surface, sample_surfaces

_DRACO = "KHR_draco_mesh_compression"
_READ = frozenset({"KHR_mesh_quantization", "KHR_texture_transform", "KHR_texture_basisu", "EXT_texture_webp",
                   "EXT_texture_avif", "KHR_lights_punctual", "KHR_xmp_json_ld", INSTANCING})  # fmt: skip
_READ_PREFIX = "KHR_materials_"  # what they change is not the base colour
_UNREADABLE_TEXTURES = ("KHR_texture_transform", "KHR_texture_basisu", "EXT_texture_avif", "MSFT_texture_dds")
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_SHAPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MOST_GROWTH, _SMALL = 16, 2**20  # bytes that accessors without data may take, of the file's and in any case
_TRIANGLES, _FAN = 4, 6
_TRIMESH_GREY = 102  # which trimesh's exporter puts beside every texture that has no colour of its own


def sample_glb(file: Path | bytes, num_points: int, seed: int) -> PointCloud:
    """Samples the surface of a GLB file, or gives its points when it has no surface.

    Raises:
        UnreadableFileError: it is broken, or needs an extension that is not there.
        ImportError: trimesh is missing.
    """
    trimesh = require("trimesh", "points")
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    header, binary = _split(data)
    _check_extensions(header)
    has_texture = _check_materials(header)
    rewritten = _readable(header, binary, len(data))
    prepared = data if rewritten is None and not has_texture else _joined(*(rewritten or (header, binary)))
    resolver = None if isinstance(file, bytes) else trimesh.resolvers.FilePathResolver(str(file))
    with _Failures(trimesh) as failures:
        scene = trimesh.load_scene(io.BytesIO(prepared), file_type="glb", resolver=resolver)
    if failures:
        raise UnreadableFileError(f"trimesh could not read all of it: {failures[0]}")
    parts = [(scene.geometry[name], matrix) for matrix, name in map(scene.graph.get, scene.graph.nodes_geometry)]
    is_trimesh = "trimesh" in str(header.get("asset", {}).get("generator", ""))
    meshes = [part for part in parts if isinstance(part[0], trimesh.Trimesh)]
    surfaces = [_surface(mesh, matrix, has_texture, is_trimesh) for mesh, matrix in meshes]
    if surfaces:
        return sample_surfaces(surfaces, num_points, seed)
    clouds = [(cloud, matrix) for cloud, matrix in parts if isinstance(cloud, trimesh.PointCloud)]
    if not clouds:
        raise UnreadableFileError("it holds no surface and no points")
    colors = [cloud.colors[:, :3] / np.float32(255) if len(cloud.colors) else None for cloud, _ in clouds]
    rgb = None
    if any(own is not None for own in colors):
        empty = [np.full((len(cloud.vertices), 3), np.nan, np.float32) for cloud, _ in clouds]
        rgb = np.concatenate([none if own is None else own for own, none in zip(colors, empty, strict=True)])
    return PointCloud(np.concatenate([_placed(cloud.vertices, matrix) for cloud, matrix in clouds]), rgb)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns (the JSON header, the binary chunk)."""
    if data[:4] != b"glTF" or len(data) < 20:
        raise UnreadableFileError("it does not begin with 'glTF'")
    _, version, length = struct.unpack_from("<4sII", data)
    if version != 2:
        raise UnreadableFileError(f"it is of version {version} of glTF; expected 2")
    if length > len(data):
        raise UnreadableFileError(f"it is cut off: it declares {length} bytes, {len(data)} are there")
    chunks, place = [], 12
    while place + 8 <= length and len(chunks) < 2:
        size, kind = struct.unpack_from("<I4s", data, place)
        if place + 8 + size > length:
            raise UnreadableFileError(f"it is cut off: a part of {size} bytes does not fit into it")
        chunks.append((kind, data[place + 8 : place + 8 + size]))
        place += 8 + size
    if not chunks or chunks[0][0] != b"JSON":
        raise UnreadableFileError("its first part is not JSON")
    header = json.loads(chunks[0][1])
    if not isinstance(header, dict):
        raise UnreadableFileError("its header is no JSON object")
    return header, chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else b""


def _joined(header: dict[str, Any], binary: bytes) -> bytes:
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 4)
    binary += b"\0" * (-len(binary) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(content) + len(binary))
    return b"".join(
        [head, struct.pack("<I4s", len(content), b"JSON"), content, struct.pack("<I4s", len(binary), b"BIN\0"), binary]
    )


def _check_extensions(header: dict[str, Any]) -> None:
    for name in header.get("extensionsRequired", []):
        if name == _DRACO and importlib.util.find_spec("DracoPy") is None:
            raise UnreadableFileError(f"it requires the extension {_DRACO}; install what reads it: pip install DracoPy")
        if name != _DRACO and name not in _READ and not str(name).startswith(_READ_PREFIX):
            raise UnreadableFileError(f"it requires the extension {name}, which this reader does not have")


def _check_materials(header: dict[str, Any]) -> dict[str, str]:
    """Names materials by their number; returns what is wrong with the texture of each that has one, "" for nothing."""
    found = {}
    textures = header.get("textures", [])
    for number, material in enumerate(header.get("materials", [])):
        material["name"] = str(number)
        gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        used = material.get("pbrMetallicRoughness", {}).get("baseColorTexture") or gloss.get("diffuseTexture")
        if used is None:
            continue
        texture = textures[used["index"]]
        names = {*used.get("extensions", {}), *texture.get("extensions", {})}
        unread = [name for name in _UNREADABLE_TEXTURES if name in names]
        if "source" in texture and unread != ["KHR_texture_transform"]:
            unread = []  # the extension offers another picture of the same
        found[str(number)] = f"it needs {unread[0]}" if unread else ""
        if used.get("texCoord", 0) != 0:
            found[str(number)] = "it uses a second set of coordinates"
    return found


def _readable(header: dict[str, Any], binary: bytes, file_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """Checks all arrays against the file and rewrites as floats or plain indices what trimesh would misread.

    Returns:
        (header, binary chunk), or None where nothing had to be rewritten.
    """
    buffers, views, accessors = (header.get(key, []) for key in ("buffers", "bufferViews", "accessors"))
    arrays = _Arrays(buffers, views, accessors, binary, file_bytes)
    for number in range(len(accessors)):
        arrays.check(number)
    rewritten: dict[int, int] = {}
    added: list[bytes] = []
    size = len(binary)

    def extended(values: np.ndarray, kind: int, shape: str) -> int:
        nonlocal size
        if not buffers:
            buffers.append({"byteLength": 0})
        content = np.ascontiguousarray(values, _TYPES[kind]).tobytes()
        padding = -size % 4
        added.append(b"\0" * padding + content)
        views.append({"buffer": 0, "byteOffset": size + padding, "byteLength": len(content)})
        size += padding + len(content)
        accessors.append({"bufferView": len(views) - 1, "componentType": kind, "count": len(values), "type": shape})
        return len(accessors) - 1

    def unpacked(number: int) -> np.ndarray:
        if "bufferView" not in accessors[number] and "sparse" not in accessors[number]:
            raise UnreadableFileError("a pose changes an array that is compressed or has no data, which is not read")
        return arrays.floats(number)

    def added_floats(values: np.ndarray) -> int:
        return extended(values, 5126, {1: "SCALAR", 16: "MAT4"}.get(values.shape[1], f"VEC{values.shape[1]}"))

    num_nodes = len(header.get("nodes", []))
    apply_pose_(header, unpacked, added_floats)
    for mesh in header.get("meshes", []):
        for primitive in mesh["primitives"]:
            attributes, mode = primitive["attributes"], primitive.get("mode", _TRIANGLES)
            is_packed = _DRACO in primitive.get("extensions", {})
            for name in ("POSITION", "TEXCOORD_0", "COLOR_0"):
                number = attributes.get(name)
                if number is not None and not is_packed and arrays.needs_rewriting(number):
                    if number not in rewritten:
                        rewritten[number] = extended(arrays.floats(number), 5126, accessors[number]["type"])
                    attributes[name] = rewritten[number]
            indices = primitive.get("indices")
            if is_packed:
                continue
            if indices is None and mode == _FAN:
                corners = np.arange(accessors[attributes["POSITION"]]["count"])
            elif indices is not None and (mode == _FAN or "sparse" in accessors[indices]):
                corners = arrays.read(indices)[:, 0]
            else:
                continue
            if mode == _FAN:
                middle = np.stack([corners[1:-1], corners[2:]], axis=1)
                corners = np.concatenate([np.broadcast_to(corners[:1, None], (len(middle), 1)), middle], axis=1).ravel()
                primitive["mode"] = _TRIANGLES
            primitive["indices"] = extended(corners, 5125, "SCALAR")
    if not added and len(header.get("nodes", [])) == num_nodes:
        return None
    if not buffers:
        buffers.append({"byteLength": 0})
    buffers[0]["byteLength"] = size
    header.update(buffers=buffers, bufferViews=views, accessors=accessors)
    return header, binary.ljust(size - sum(map(len, added)), b"\0") + b"".join(added)


class _Arrays:
    """The accessors of a file, checked against it and read as the specification says."""

    def __init__(self, buffers: list, views: list, accessors: list, binary: bytes, file_bytes: int):
        self.views, self.accessors, self.binary = views, accessors, binary
        self.room = max(_SMALL, _MOST_GROWTH * file_bytes)
        self.external = {number for number, buffer in enumerate(buffers) if "uri" in buffer}
        for number, buffer in enumerate(buffers):
            if number not in self.external and _size(buffer, "byteLength") > len(binary) + 3:
                raise UnreadableFileError(
                    f"it is cut off: a buffer of {buffer['byteLength']} bytes has {len(binary)} in the file"
                )

    def check(self, number: int) -> None:
        """Refuses an accessor that names more than the file holds."""
        accessor = self.accessors[number]
        count, row = _size(accessor, "count"), self._row_bytes(accessor)
        if "bufferView" in accessor:
            self._check_view(accessor["bufferView"], accessor.get("byteOffset", 0), count, row)
        else:
            self.room -= count * row
            if self.room < 0:
                raise UnreadableFileError(f"an array of {count} rows has no data in the file")

    def needs_rewriting(self, number: int) -> bool:
        accessor = self.accessors[number]
        is_fraction = accessor.get("normalized", False) and accessor["componentType"] != 5126
        if "bufferView" not in accessor and "sparse" not in accessor:
            raise UnreadableFileError(f"an array of {accessor['count']} rows has no data in the file")
        return is_fraction or "sparse" in accessor

    def floats(self, number: int) -> np.ndarray:
        """Returns an accessor's values, integers that stand for fractions divided by their largest."""
        values = self.read(number)
        if not self.accessors[number].get("normalized", False) or values.dtype.kind == "f":
            return values.astype(np.float32)
        return np.maximum(values / np.iinfo(values.dtype).max, -1.0).astype(np.float32)

    def read(self, number: int) -> np.ndarray:
        """Returns an accessor's values [count, components], sparse ones put in their places."""
        accessor = self.accessors[number]
        count, width = accessor["count"], _SHAPES[accessor["type"]]
        dtype = np.dtype(_TYPES[accessor["componentType"]])
        values = np.zeros((count, width), dtype)
        if "bufferView" in accessor:
            values = self._rows(accessor["bufferView"], accessor.get("byteOffset", 0), count, dtype, width).copy()
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            changed, own = _size(sparse, "count"), sparse["indices"]
            kind = np.dtype(_TYPES[own["componentType"]])
            places = self._rows(own["bufferView"], own.get("byteOffset", 0), changed, kind, 1)[:, 0]
            news = sparse["values"]
            values[places] = self._rows(news["bufferView"], news.get("byteOffset", 0), changed, dtype, width)
        return values

    def _row_bytes(self, accessor: dict[str, Any]) -> int:
        if accessor["componentType"] not in _TYPES or accessor["type"] not in _SHAPES:
            raise UnreadableFileError(f"an array has an unknown type: {accessor['componentType']}, {accessor['type']}")
        return _SHAPES[accessor["type"]] * np.dtype(_TYPES[accessor["componentType"]]).itemsize

    def _check_view(self, view_number: int, offset: int, count: int, row: int) -> dict[str, Any]:
        view = self.views[view_number]
        stride = view.get("byteStride", row)
        needed = offset + (count - 1) * stride + row if count else 0
        begin, length = view.get("byteOffset", 0), _size(view, "byteLength")
        is_inside = view["buffer"] in self.external or begin + length <= len(self.binary)
        if offset < 0 or begin < 0 or stride < row or needed > length or not is_inside:
            raise UnreadableFileError(f"an array of {count} rows takes {needed} bytes, {length} are there")
        return view

    def _rows(self, view_number: int, offset: int, count: int, dtype: np.dtype, width: int) -> np.ndarray:
        row = dtype.itemsize * width
        view = self._check_view(view_number, offset, count, row)
        if view["buffer"] in self.external:
            raise UnreadableFileError("an array that must be rewritten lies in another file")
        start, stride = view.get("byteOffset", 0) + offset, view.get("byteStride", row)
        if count == 0:
            return np.empty((0, width), dtype)
        return np.ndarray((count, width), dtype, self.binary, start, (stride, dtype.itemsize))


def _size(entry: dict[str, Any], key: str) -> int:
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UnreadableFileError(f"its header has the {key} {value!r}; expected a whole number of at least 0")
    return value


class _Failures(logging.Handler):
    """Collects what trimesh only warns of: geometry that it could not decode."""

    def __init__(self, trimesh: Any):
        super().__init__(logging.WARNING)
        self.logger, self.messages = trimesh.util.log, []

    def __enter__(self) -> list[str]:
        self.logger.addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _placed(vertices: Any, matrix: np.ndarray) -> np.ndarray:
    return np.asarray(vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def _surface(mesh: Any, matrix: np.ndarray, has_texture: dict[str, str], is_trimesh: bool) -> Surface:
    """Turns a mesh of trimesh's, at its place in the scene, into a surface."""
    visual, corners = mesh.visual, np.asarray(mesh.faces, np.int64)
    vertices = _placed(mesh.vertices, matrix)
    if corners.size and not 0 <= corners.min() <= corners.max() < len(vertices):
        raise UnreadableFileError(f"a face names a vertex outside of 0 to {len(vertices) - 1}")
    if visual.kind in ("vertex", "face"):
        rgba = visual.vertex_colors if visual.kind == "vertex" else visual.face_colors
        rgb = np.asarray(rgba)[:, :3] / np.float32(255)
        return Surface(vertices, corners, *((rgb, None) if visual.kind == "vertex" else (None, rgb)))
    if visual.kind != "texture" or visual.material is None:
        return Surface(vertices, corners)
    material = visual.material
    extra = visual.vertex_attributes.get("color") if hasattr(visual, "vertex_attributes") else None
    vertex_rgb = None
    if extra is not None and len(extra) == len(vertices):
        extra = np.asarray(extra)
        vertex_rgb = (extra[:, :3] / (np.iinfo(extra.dtype).max if extra.dtype.kind in "iu" else 1)).astype(np.float32)
    factor = getattr(material, "baseColorFactor", None)
    factor = (1.0, 1.0, 1.0) if factor is None else tuple((np.asarray(factor)[:3] / 255).tolist())
    image = getattr(material, "baseColorTexture", None)
    if image is not None and is_trimesh and factor == (_TRIMESH_GREY / 255,) * 3:
        factor = None
    wrong = has_texture.get(material.name)
    if wrong is not None and (wrong or image is None or visual.uv is None):
        why = wrong or ("it has no coordinates" if image is not None else "its format is not known")
        return Surface(vertices, corners, remarks=(f"a texture cannot be read and is no colour: {why}",))
    uv = np.asarray(visual.uv, np.float64)[corners] if image is not None else None
    return Surface(vertices, corners, vertex_rgb, None, uv, image, factor)
