"""Pictures that are whole inside a file that is not: JPEG without its end marker, PNG with damaged side information.

Nothing is guessed: a JPEG is only taken where all of its coefficients are proven to be there, and of a PNG only chunks
are left out that say nothing about its pixels.

Source: ITU-T T.81, annexes B and G (JPEG); the PNG specification (W3C), sections 5 and 11.
"""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
from PIL import JpegImagePlugin

_END_OF_IMAGE = b"\xff\xd9"
_FILL_BYTES = 64  # of made-up data, in each of 256 intervals; a picture that is not whole takes some of it
_FILL_INTERVALS = 256
_FILLS = 8  # random ones: of two that are alike but for a shift, 1 cut in 40 decoded to the same picture
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_FRAMES = {0xC0, 0xC1, 0xC2}  # sequential and progressive, Huffman-coded
_START_OF_SCAN = 0xDA
_COEFFICIENTS = 64
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")


def with_end_marker(data: bytes) -> bytes | None:
    """Returns a JPEG file with its end marker if only that is missing, None otherwise."""
    if data.rstrip(b"\0").endswith(_END_OF_IMAGE) or not _has_all_scans(data):
        return None
    data = data[:-1] if data.endswith(b"\xff") else data  # half of the marker
    # where the last scan is whole, what follows it changes no pixel
    number = _next_restart(data)
    markers = [b"" if number is None else bytes((0xFF, 0xD0 + (number + i) % 8)) for i in range(_FILL_INTERVALS)]
    rng = np.random.default_rng(0)
    first = None
    for _ in range(_FILLS):
        fill = rng.integers(0, 0xFF, _FILL_BYTES, np.uint8).tobytes()  # without 0xFF, which begins a marker
        made_up = fill + b"".join(marker + fill for marker in markers)
        picture = np.asarray(JpegImagePlugin.JpegImageFile(io.BytesIO(data + made_up + _END_OF_IMAGE)))
        first = picture if first is None else first
        if not np.array_equal(picture, first):
            return None
    return data + _END_OF_IMAGE


def _next_restart(data: bytes) -> int | None:
    """Returns the number of the restart marker that would follow in the last scan; None where it has none."""
    place = data.rfind(b"\xff\xda")
    last = max(data.rfind(bytes((0xFF, marker)), place) for marker in range(0xD0, 0xD8))
    has_interval = re.search(rb"\xff\xdd\0\x04(?!\0\0)", data[:place]) is not None
    if last < 0:
        return 0 if has_interval else None
    return (data[last + 1] - 0xD0 + 1) % 8


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG file bring every bit of every coefficient of every component."""
    components: list[int] = []
    missing: set[tuple[int, int]] = set()
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker == 0xFF or marker in _STANDALONE:
            place += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        content = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker in _FRAMES:
            components = [content[6 + 3 * i] for i in range(content[5])]
            missing = {(component, i) for component in components for i in range(_COEFFICIENTS)}
        elif marker == _START_OF_SCAN:
            count = content[0]
            first, last, low_bits = content[1 + 2 * count], content[2 + 2 * count], content[3 + 2 * count] & 15
            if low_bits == 0:
                scanned = {content[1 + 2 * i] for i in range(count)}
                missing -= {(component, i) for component in scanned for i in range(first, last + 1)}
            place = _end_of_scan(data, place)
    return bool(components) and not missing


def _end_of_scan(data: bytes, place: int) -> int:
    """Returns where the next marker after entropy-coded data stands."""
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return len(data)
        if data[place + 1] != 0 and data[place + 1] not in _STANDALONE:
            return place
        place += 2


def without_ancillary_chunks(data: bytes) -> bytes | None:
    """Returns a PNG file with the chunks alone that say something about its pixels or their orientation."""
    place, chunks = len(_PNG_START), []
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data):
            break
        is_sound = zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if name in _PNG_KEPT and (is_sound or name[:1].isupper()):  # a damaged picture is found by its decoder
            chunks.append(data[place:end])
        place = end
        if name == b"IEND":
            break
    if place < len(data) and data[place + 4 : place + 8] == b"IDAT":  # cut off inside of the picture
        return None
    if not chunks or chunks[-1][4:8] != b"IEND":
        chunks.append(b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    return _PNG_START + b"".join(chunks)
