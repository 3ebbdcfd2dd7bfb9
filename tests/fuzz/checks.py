"""What must hold for any file: it is read in bounded time and memory or refused, and no point is invented.

The points of a file are compared with those that an independent, plain parser finds: plyfile and pypcd4 for PLY and
PCD, numpy for arrays, Python's own numbers for text. Points of a mesh lie on the faces that trimesh or a plain parser
finds.
"""

from __future__ import annotations

import io
import logging
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from multicoca_image import ImageProcessor
from multicoca_points import PointsProcessor
from multicoca_video import VideoProcessor

from multicoca.data.manifest import read_lines
from multicoca.data.shard_scan import scan_shard
from multicoca.data.sources import Folder
from multicoca.data.webdataset import WebDataset
from multicoca.reading import UnreadableFileError

MOST_SECONDS = 10.0
MOST_BYTES = 2**30
_FLOATS = ("<f4", "<f8", ">f4", ">f8")
_IMAGES, _VIDEOS, _CLOUDS = ImageProcessor(size_px=32), VideoProcessor(size_px=32, num_frames=4), PointsProcessor()


class ViolationError(AssertionError):
    """A file broke a promise of its reader."""


def check(data: bytes, suffix: str) -> bool:
    """Reads a file of any content; returns whether it was read, and not refused.

    Raises:
        ViolationError: something else than `UnreadableFileError` was raised, it took too long or too much memory, or
            points were invented.
    """
    before, started = _forget_peak(), time.perf_counter()
    try:
        result = _READERS.get(suffix, _read_with(suffix))(data)
    except UnreadableFileError:
        result = None
    except Exception as error:
        raise ViolationError(f"{suffix}: {type(error).__name__}: {error}") from error
    seconds, grown = time.perf_counter() - started, _peak() - before
    if seconds > MOST_SECONDS:
        raise ViolationError(f"{suffix}: it took {seconds:.1f} s")
    if grown > MOST_BYTES:
        raise ViolationError(f"{suffix}: it took {grown / 2**20:.0f} MiB")
    if result is not None and suffix in _ORACLES:
        try:
            _ORACLES[suffix](data, result)
        except ViolationError:
            raise
        except Exception as error:
            raise ViolationError(f"{suffix}: it was read, and another parser refuses it: {error}") from error
    return result is not None


def _forget_peak() -> int:
    """Makes the peak of memory count from here, where the system can; returns what it begins with, in bytes."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    return _peak()


def _peak() -> int:
    """Returns the most memory that this process has taken, in bytes."""
    if sys.platform == "linux":
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def _read_with(suffix: str):
    """Returns what reads a file of a suffix and makes a sample of it."""
    own = suffix.split()[0]
    processor = _IMAGES if own in _IMAGES.suffixes else _VIDEOS if own in _VIDEOS.suffixes else _CLOUDS
    processor = _VIDEOS if suffix.endswith(" video") else processor

    def read(data: bytes):
        raw = processor.decode(data, own)
        sample = processor.preprocess(raw, False, torch.Generator())
        values = next(iter(sample.values()))
        assert values.isfinite().all(), "a sample holds numbers that are not finite"
        processor.thumbnail(raw)
        return raw

    return read


def _names(error: ValueError, file: str) -> None:
    if file not in str(error):
        raise ViolationError(f"the message does not name {file}: {error}")


def _read_tar(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        scan = scan_shard(str(path))
        try:
            listing = WebDataset(str(path)).list_items({"image": _IMAGES}, 0)
        except ValueError as error:  # no sample is left; the message names the shard
            _names(error, "a.tar")
            return None
        for items in listing.splits.values():
            for item in items["image"]:
                try:
                    item.sample(_IMAGES, False)
                except UnreadableFileError:
                    continue
        str(listing.problems).encode()
        return scan


def _read_manifest(suffix: str):
    def read(data: bytes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a{suffix}"
            path.write_bytes(data)
            try:
                lines = list(read_lines(path))
                listing = Folder(path).list_items({"image": _IMAGES}, 0)
            except ValueError as error:  # of the file as a whole; the message names it
                _names(error, path.name)
                return None
            "".join(problem.reason + problem.key for problem in listing.problems).encode()
            return lines

    return read


# Who else finds the points of a file.


def _same_points(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    expected = expected[np.isfinite(expected).all(axis=1)]
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6, atol=1e-30):
        raise ViolationError(f"{what}: {len(found)} points were read, another parser finds others ({len(expected)})")


def _check_ply(data: bytes, cloud) -> None:
    import plyfile

    try:
        ply = plyfile.PlyData.read(io.BytesIO(data))
        fields = {prop.name.lower(): ply["vertex"][prop.name] for prop in ply["vertex"].properties}
        xyz = np.stack([np.asarray(fields[axis], np.float64) for axis in "xyz"], axis=1)
    except Exception:
        if b"element face" in data:
            return
        if b"ascii" in data[:200]:
            _only_numbers_of_the_text(data, cloud)  # plyfile wants each number in the form of its type
        else:
            _only_numbers_of_the_bytes(data, cloud)  # and ASCII in comments
        return
    faces = [np.asarray(row) for element in ply.elements if element.name == "face" for prop in element.properties
             if prop.name in ("vertex_indices", "vertex_index") for row in element[prop.name]]  # fmt: skip
    triangles = [(face[0], face[i], face[i + 1]) for face in faces for i in range(1, len(face) - 1)]
    if triangles:
        _on_triangles(cloud.xyz, xyz[np.array(triangles)], ".ply")
    else:
        _same_points(cloud.xyz, xyz, ".ply")


def _check_pcd(data: bytes, cloud) -> None:
    import pypcd4

    encoding = re.search(rb"^\s*DATA\s+(\w+)", data, re.MULTILINE | re.IGNORECASE)[1].lower()
    if encoding == b"ascii":
        _only_numbers_of_the_text(data, cloud)
        return
    try:
        fields = pypcd4.PointCloud.from_fileobj(io.BytesIO(data)).pc_data
        xyz = np.stack([np.asarray(fields[axis], np.float64) for axis in "xyz"], axis=1)
    except Exception:  # it knows fewer spellings of headers; then every coordinate must at least be in the file
        if encoding == b"binary":
            _only_numbers_of_the_bytes(data, cloud)
        return
    _same_points(cloud.xyz, xyz, ".pcd")


def _only_numbers_of_the_text(data: bytes, cloud) -> None:
    numbers = set()
    for word in data.replace(b",", b" ").split():
        try:
            numbers.add(float(word))
        except ValueError:
            continue
    invented = [value for value in cloud.xyz.ravel().tolist() if value not in numbers]
    if invented:
        raise ViolationError(f"the text holds no {invented[:3]}")


def _only_numbers_of_the_bytes(data: bytes, cloud) -> None:
    for row in cloud.xyz:
        for value in row:
            if not any(np.array(value, kind).tobytes() in data for kind in _FLOATS) and value != np.rint(value):
                raise ViolationError(f"the bytes hold no {value}")


def _check_npy(data: bytes, cloud) -> None:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    _same_points(cloud.xyz, np.asarray(array, np.float64)[:, :3], ".npy")


def _check_npz(data: bytes, cloud) -> None:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        key = next(key for key in ("xyz", "points", "pc") if key in arrays)
        _same_points(cloud.xyz, np.asarray(arrays[key], np.float64)[:, :3], ".npz")


def _on_triangles(points: np.ndarray, triangles: np.ndarray, what: str) -> None:
    """Whether every point lies on a triangle, by its barycentric coordinates."""
    size = np.abs(triangles[np.isfinite(triangles).all(axis=(1, 2))]).max()
    for point in points[:: max(1, len(points) // 20)]:
        a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        with np.errstate(all="ignore"):
            area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
            parts = sum(np.linalg.norm(np.cross(p - point, q - point), axis=1) for p, q in ((a, b), (b, c), (c, a)))
            is_on = np.nanmin(np.abs(parts - area)) <= 1e-6 * size * size + 1e-12
        if not is_on:
            raise ViolationError(f"{what}: {point.tolist()} lies on no face")


def _check_obj(data: bytes, cloud) -> None:
    vertices, faces = [], []
    for line in data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        words = line.partition(b"#")[0].split()
        if words[:1] == [b"v"]:
            vertices.append([float(word) for word in words[1:4]])
        elif words[:1] == [b"f"]:
            own = [int(word.split(b"/")[0]) for word in words[1:]]
            own = [number - 1 if number > 0 else len(vertices) + number for number in own]
            faces += [(own[0], own[i], own[i + 1]) for i in range(1, len(own) - 1)]
    if faces:
        _on_triangles(cloud.xyz, np.array(vertices)[np.array(faces)], ".obj")
    else:
        _same_points(cloud.xyz, np.array(vertices), ".obj")


def _check_mesh(kind: str):
    def check_mesh(data: bytes, cloud) -> None:
        import trimesh

        try:
            logging.getLogger("trimesh").setLevel(logging.CRITICAL)
            mesh = trimesh.load_mesh(io.BytesIO(data), file_type=kind, process=False)
            triangles = np.asarray(mesh.triangles, np.float64)
        except Exception:  # it refuses forms that are read here, colours behind faces for example
            return
        if len(triangles):
            _on_triangles(cloud.xyz, triangles, f".{kind}")

    return check_mesh


_READERS = {".tar": _read_tar, ".jsonl": _read_manifest(".jsonl"), ".csv": _read_manifest(".csv"),
            ".tsv": _read_manifest(".tsv")}  # fmt: skip
_ORACLES = {".ply": _check_ply, ".pcd": _check_pcd, ".xyz": _only_numbers_of_the_text,
            ".xyzrgb": _only_numbers_of_the_text, ".pts": _only_numbers_of_the_text, ".npy": _check_npy,
            ".npz": _check_npz, ".obj": _check_obj, ".off": _check_mesh("off"), ".stl": _check_mesh("stl")}  # fmt: skip
