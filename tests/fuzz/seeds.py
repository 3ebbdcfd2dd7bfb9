"""Small clean files of every kind that a reader takes: what mutations begin with."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _points() -> tuple[np.ndarray, np.ndarray]:
    rng = _rng()
    return rng.normal(size=(12, 3)).round(4), rng.integers(0, 256, (12, 3))


def _rows(*columns: np.ndarray, separator: str = " ") -> bytes:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return "".join(separator.join(str(v) for own in row for v in own) + "\n" for row in rows).encode()


def _ply(encoding: str, kind: str, faces: str = "") -> bytes:
    xyz, rgb = _points()
    lines = ["ply", f"format {encoding} 1.0", "comment made here", "element vertex 12"]
    lines += [f"property {kind} {name}" for name in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    triangles = [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9)] if faces else []
    if faces:
        lines += [f"element face {len(triangles)}", "property list uchar int vertex_indices"]
    head = "\n".join([*lines, "end_header", ""]).encode()
    if encoding == "ascii":
        return head + _rows(xyz, rgb) + "".join(f"{len(t)} {' '.join(map(str, t))}\n" for t in triangles).encode()
    order = "<" if "little" in encoding else ">"
    rows = np.zeros(12, np.dtype([("xyz", order + {"float": "f4", "double": "f8"}[kind], 3), ("rgb", "u1", 3)]))
    rows["xyz"], rows["rgb"] = xyz, rgb
    return head + rows.tobytes() + b"".join(bytes([len(t)]) + np.array(t, order + "i4").tobytes() for t in triangles)


def _pcd(encoding: str, size: int = 4) -> bytes:
    xyz, _ = _points()
    names = f"VERSION 0.7\nFIELDS x y z rgb\nSIZE {size} {size} {size} 4\nTYPE F F F U\nCOUNT 1 1 1 1\n"
    head = f"# .PCD v0.7\n{names}WIDTH 12\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 12\nDATA {encoding}\n".encode()
    packed = np.arange(12)[:, None] * 65793
    if encoding == "ascii":
        return head + _rows(xyz, packed)
    rows = np.zeros(12, np.dtype([(axis, f"<f{size}") for axis in "xyz"] + [("rgb", "<u4")]))
    for i, axis in enumerate("xyz"):
        rows[axis] = xyz[:, i]
    rows["rgb"] = packed[:, 0]
    if encoding == "binary":
        return head + rows.tobytes()
    import lzf

    content = b"".join(rows[name].tobytes() for name in rows.dtype.names)
    content = content + bytes(0)
    compressed = lzf.compress(content, 10 * len(content)) or b""
    return head + np.array([len(compressed), len(content)], "<u4").tobytes() + compressed


def _array(kind: str, **options) -> bytes:
    xyz, rgb = _points()
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, np.concatenate([xyz, rgb / 255], axis=1).astype(options.get("dtype", np.float64)))
    elif options.get("compressed"):
        np.savez_compressed(file, xyz=xyz, rgb=rgb.astype(np.uint8))
    else:
        np.savez(file, points=xyz.astype(np.float32))
    return file.getvalue()


def _mesh(kind: str) -> bytes:
    import trimesh

    box = trimesh.creation.box(extents=(1, 2, 3))
    if kind == "glb":
        box.visual = trimesh.visual.TextureVisuals(uv=_rng().random((8, 2)), image=Image.new("RGB", (4, 4), "red"))
    if kind == "stl_ascii":
        return trimesh.exchange.stl.export_stl_ascii(box).encode()
    content = box.export(file_type=kind)
    return content if isinstance(content, bytes) else content.encode()


def _obj() -> bytes:
    return (
        b"# made here\nmtllib a.mtl\no a\nv 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 1 0 0 0 1\nv 0 1 0 1 1 1\nvt 0 0\nvt 1 0\n"
        b"vt 1 1\nvt 0 1\nvn 0 0 1\nusemtl a\nf 1/1/1 2/2/1 3/3/1 4/4/1\nf -4 -3 -1\ng b\nf 1//1 2//1 3//1\n"
    )


def _picture(kind: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.kron(_rng().integers(0, 256, (4, 5, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _animation() -> bytes:
    frames = [Image.fromarray(_rng().integers(0, 256, (24, 24, 3)).astype(np.uint8)) for _ in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def _clip(container: str, codec: str, **options: str) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as writer:
        stream = writer.add_stream(codec, rate=10, options=options)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for i in range(6):
            picture = np.full((48, 48, 3), 40 * i, np.uint8)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        writer.mux(stream.encode())
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(3):
            described = json.dumps({"captions": ["a cube", "a ball"], "label": "cube", "split": "train"}).encode()
            for suffix, content in ((".png", _picture("PNG")), (".txt", b"a red cube"), (".json", described)):
                header = tarfile.TarInfo(f"{i:06d}{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


def _manifest(kind: str) -> bytes:
    rows = [{"file_name": f"{i}.png", "text": f"a cube, number {i}", "label": "cube", "split": "val"} for i in range(5)]
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    separator = {"csv": ",", "tsv": "\t"}[kind]
    lines = [separator.join(rows[0])] + [separator.join(f'"{value}"' for value in row.values()) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def seeds(suffix: str) -> list[bytes]:
    """Returns clean files of a kind.

    Raises:
        KeyError: there is no such kind.
    """
    xyz, rgb = _points()
    x264 = {"preset": "ultrafast", "threads": "1"}
    makers = {
        ".ply": lambda: [_ply(*own) for own in (
            ("ascii", "float"), ("binary_little_endian", "float"), ("ascii", "double", "faces"),
            ("binary_big_endian", "double"), ("binary_little_endian", "float", "faces"))],
        ".pcd": lambda: [_pcd("ascii"), _pcd("binary"), _pcd("binary", 8), _pcd("binary_compressed")],
        ".xyz": lambda: [_rows(xyz), _rows(xyz, rgb), _rows(xyz, separator=", "), b"x y z r g b\n" + _rows(xyz, rgb)],
        ".xyzrgb": lambda: [_rows(xyz, rgb / 255), _rows(xyz, rgb)],
        ".pts": lambda: [b"12\n" + _rows(xyz, rgb[:, :1], rgb), b"12\n" + _rows(xyz), _rows(xyz)],
        ".obj": lambda: [_obj(), _mesh("obj")],
        ".glb": lambda: [_mesh("glb"), _quantized_glb()],
        ".off": lambda: [_mesh("off"), b"OFF 4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n3 0 1 2 255 0 0\n"],
        ".stl": lambda: [_mesh("stl"), _mesh("stl_ascii")],
        ".npy": lambda: [_array("npy"), _array("npy", dtype=np.float32)],
        ".npz": lambda: [_array("npz"), _array("npz", compressed=True)],
        ".jpg": lambda: [_picture("JPEG"), _picture("JPEG", progressive=True), _picture("JPEG", "L"),
                         _picture("JPEG", "CMYK")],
        ".png": lambda: [_picture("PNG"), _picture("PNG", "P"), _picture("PNG", "RGBA"), _picture("PNG", "1")],
        ".webp": lambda: [_picture("WEBP"), _picture("WEBP", lossless=True)],
        ".gif": lambda: [_picture("GIF", "P"), _animation()],
        ".bmp": lambda: [_picture("BMP"), _picture("BMP", "P"), _picture("BMP", "1")],
        ".mp4": lambda: [_clip("mp4", "libx264", **x264), _clip("mp4", "mpeg4")],
        ".mkv": lambda: [_clip("matroska", "libx264", **x264)],
        ".webm": lambda: [_clip("webm", "libvpx")],
        ".avi": lambda: [_clip("avi", "mpeg4")],
        ".mov": lambda: [_clip("mov", "libx264", **x264)],
        ".ts": lambda: [_clip("mpegts", "libx264", **x264)],
        ".mpg": lambda: [_clip("mpeg", "mpeg2video")],
        ".flv": lambda: [_clip("flv", "flv1")],
        ".wmv": lambda: [_clip("asf", "wmv2")],
        ".ogv": lambda: [_clip("ogg", "libvpx")],
        ".gif video": lambda: [_animation()],
        ".tar": lambda: [_tar()],
        ".jsonl": lambda: [_manifest("jsonl")],
        ".csv": lambda: [_manifest("csv")],
        ".tsv": lambda: [_manifest("tsv")],
    }  # fmt: skip
    return makers[suffix]()


SUFFIXES = (
    ".ply", ".pcd", ".xyz", ".xyzrgb", ".pts", ".obj", ".glb", ".off", ".stl", ".npy", ".npz", ".jpg", ".png", ".webp",
    ".gif", ".bmp", ".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".mpg", ".flv", ".wmv", ".ogv", ".gif video",
    ".tar", ".jsonl", ".csv", ".tsv",
)  # fmt: skip


def _quantized_glb() -> bytes:
    """A cube with normalized positions, two nodes, and indices of 8 bits."""
    import struct

    corners = np.array([[x, y, z, 0] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], "<i2") * 32767
    faces = np.array([0, 1, 2, 1, 3, 2, 4, 6, 5, 5, 6, 7, 0, 4, 1, 1, 4, 5], "u1")
    header = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0, 1]}],
        "nodes": [{"mesh": 0}, {"mesh": 0, "translation": [3, 0, 0], "scale": [2, 2, 2]}],
        "extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [{"bufferView": 0, "componentType": 5122, "normalized": True, "count": 8, "type": "VEC3"},
                      {"bufferView": 1, "componentType": 5121, "count": 18, "type": "SCALAR"}],
        "bufferViews": [{"buffer": 0, "byteLength": 64, "byteStride": 8},
                        {"buffer": 0, "byteOffset": 64, "byteLength": 18}],
        "buffers": [{"byteLength": 84}],
    }  # fmt: skip
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 4)
    binary = corners.tobytes() + faces.tobytes() + bytes(2)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(content) + len(binary))
    return (
        head
        + struct.pack("<I4s", len(content), b"JSON")
        + content
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )
