"""Real damage to real files, and the reason that each must be given: files as downloads and full disks leave them."""

import io
from collections.abc import Callable

import av
import numpy as np

PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such file.</body></html>\n"
_PLY_POINT = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


def cut(content: bytes) -> bytes:
    """The first half."""
    return content[: len(content) // 2]


def noise(content: bytes) -> bytes:
    """As many random bytes."""
    return np.random.default_rng(0).bytes(len(content))


def huge_jpeg(content: bytes) -> bytes:
    """A JPEG whose header claims 65,500 x 65,500 pixels."""
    at = content.index(b"\xff\xc0") + 5  # height and width stand behind length and precision (ITU T.81, B.2.2)
    return content[:at] + (65500).to_bytes(2, "big") * 2 + content[at + 4 :]


def without_index(content: bytes) -> bytes:
    """An MP4 that ends before its moov atom, which says where the frames are."""
    return content[: content.rindex(b"moov") - 4]


def sound_alone(content: bytes) -> bytes:
    """An MP4 with a sound track and nothing else."""
    del content
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def without_frames(content: bytes) -> bytes:
    """An MP4 with its headers whole and not one frame."""
    del content
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = 64
        container.start_encoding()
    return file.getvalue()


def wiped_frames(content: bytes) -> bytes:
    """An MP4 whose frames are zeros, as in a file that was allotted and never filled."""
    at = content.index(b"mdat")
    end = at - 4 + int.from_bytes(content[at - 4 : at], "big")
    return content[: at + 4] + bytes(end - at - 4) + content[end:]


def _ply_parts(content: bytes) -> tuple[bytes, np.ndarray]:
    header, mark, body = content.partition(b"end_header\n")
    return header + mark, np.frombuffer(body, _PLY_POINT).copy()


def ply_header(content: bytes) -> bytes:
    """A PLY file that ends with its header."""
    return _ply_parts(content)[0]


def fewer_points(content: bytes) -> bytes:
    """A PLY file with half of the points that it declares."""
    header, points = _ply_parts(content)
    return header + points[: len(points) // 2].tobytes()


def no_numbers(content: bytes) -> bytes:
    """A PLY file of whose points not one has a place."""
    header, points = _ply_parts(content)
    points["x"] = np.nan
    return header + points.tobytes()


def no_points(content: bytes) -> bytes:
    """A PLY file that declares no point and has none."""
    header, points = _ply_parts(content)
    return header.replace(b"element vertex %d" % len(points), b"element vertex 0")


def nothing(content: bytes) -> bytes:
    """An empty file."""
    return content[:0]


def page(content: bytes) -> bytes:
    """The page that a server sends with an error."""
    del content
    return PAGE


REASONS: dict[Callable[[bytes], bytes], str] = {
    nothing: r"empty \(0 bytes\)",
    page: r"starts with b'<!DOCTYPE html|is an HTML page, not a video|does not start with the line 'ply'",
    noise: r"is none of JPEG, PNG, WebP, GIF, BMP: it starts with b'",
    cut: r"is a broken JPEG file: image file is truncated",
    huge_jpeg: r"says it has 65500 x 65500 = 4290250000 pixels; at most \d+ are decoded",
    without_index: r"is not a video that FFmpeg can open",
    sound_alone: r"holds no video stream, only audio",
    without_frames: r"holds no video stream, only nothing|without any frame",
    wiped_frames: r"no frame of .* can be decoded",
    ply_header: r"it is cut off: its points take \d+ bytes, 0 are there",
    fewer_points: r"it is cut off: its points take 15360 bytes, 7680 are there",
    no_numbers: r"none of its 1024 points is finite",
    no_points: r"it holds no points",
}
