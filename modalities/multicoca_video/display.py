"""How stored frames become what a player shows: turned, mirrored, and with square pixels.

Source: the matrix of QuickTime's track header (ISO/IEC 14496-12, section 8.3.2), x' = a x + c y, y' = b x + d y, and
FFmpeg's reading of it (libavutil/display.h); sample aspect ratios as av_guess_sample_aspect_ratio finds them.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from multicoca.reading import UnreadableFileError

_UNTURNED = struct.pack(">4i", 1 << 16, 0, 0, 1 << 16)  # a, b, c, d
_MOST_BOXES, _MOST_HEADER_BYTES = 10_000, 2**26
_MATROSKA_PROJECTION, _MATROSKA_CLUSTER, _MATROSKA_HEADER_BYTES = b"\x76\x70", b"\x1f\x43\xb6\x75", 2**14
_NEARLY = 0.02  # of the length of an axis, a degree: what an axis may be off


@dataclass(frozen=True)
class Display:
    """What is done to a stored frame, in this order.

    Attributes:
        pixel_aspect: width of a stored pixel divided by its height.
        transpose: swap rows and columns.
        flip_x: then mirror left and right.
        flip_y: then mirror top and bottom.
    """

    pixel_aspect: float = 1.0
    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def is_mirrored(self) -> bool:
        """Whether turning alone cannot do it."""
        return (self.transpose + self.flip_x + self.flip_y) % 2 == 1

    def square_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) of a stored frame with square pixels; a side grows and none shrinks."""
        if self.pixel_aspect >= 1:
            return max(1, round(width * self.pixel_aspect)), height
        return width, max(1, round(height / self.pixel_aspect))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns (width, height) as shown."""
        width, height = self.square_size(width, height)
        return (height, width) if self.transpose else (width, height)

    def upright(self, picture: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """Turns and mirrors a picture that has square pixels already."""
        picture = picture.transpose(1, 0, 2) if self.transpose else picture
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def display_of(frame: Any, pixel_aspect: float) -> Display:
    """Returns how a PyAV frame is shown.

    Raises:
        UnreadableFileError: it is turned by an angle that is no multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Display(pixel_aspect)
    values = struct.unpack("<9i", bytes(data)[:36])
    return Display(pixel_aspect, *_axes((values[0], values[1], values[3], values[4])))


def may_be_turned(file: io.BufferedIOBase, container: str) -> bool:
    """Whether a file may hold a display matrix, by a look at its header; PyAV only tells that of a decoded frame.

    Args:
        file: open for reading; its place is moved.
        container: FFmpeg's name of the format.
    """
    if container.startswith("matroska"):
        header = file.read(_MATROSKA_HEADER_BYTES).partition(_MATROSKA_CLUSTER)[0]  # frames follow
        return _MATROSKA_PROJECTION in header
    if not container.startswith("mov"):
        return False
    header = _box(file, b"moov")
    place = header.find(b"tkhd")
    while place >= 0:
        start = place + (56 if header[place + 4 : place + 5] == b"\1" else 44)  # version 1 has 64-bit times
        matrix = header[start : start + 36]
        if len(matrix) == 36 and matrix[:8] + matrix[12:20] != _UNTURNED:
            return True
        place = header.find(b"tkhd", place + 4)
    return False


def _box(file: io.BufferedIOBase, name: bytes) -> bytes:
    """Returns the content of a box at the top of an MP4 file, or b"" when it is not found."""
    place = 0
    for _ in range(_MOST_BOXES):
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return b""
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if head[4:8] == name:
            file.seek(place)
            return file.read(min(size, _MOST_HEADER_BYTES) if size else _MOST_HEADER_BYTES)
        if size < 8:
            return b""
        place += size
    return b""


def _axes(matrix: tuple[int, int, int, int]) -> tuple[bool, bool, bool]:
    """Returns (transpose, flip_x, flip_y) of a matrix."""
    a, b, c, d = matrix
    largest = max(abs(value) for value in matrix)
    if largest == 0:  # some cameras write nothing but zeros
        return False, False, False
    if max(abs(b), abs(c)) <= _NEARLY * largest and min(abs(a), abs(d)) > 0:
        return False, a < 0, d < 0
    if max(abs(a), abs(d)) <= _NEARLY * largest and min(abs(b), abs(c)) > 0:
        return True, c < 0, b < 0
    raise UnreadableFileError("its frames are turned by an angle that is no multiple of 90 degrees")
