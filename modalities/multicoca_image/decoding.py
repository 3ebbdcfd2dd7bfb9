"""From the bytes of an image file to an upright RGB picture.

The format is told by the first bytes, never by the name, and the reader of that one format is called directly:
the size is read from the header and checked before anything is decoded, without touching Pillow's process-wide
limit. Transparency is laid over white; 16-bit grey is scaled, not clipped. A whole picture is read even
where its metadata or end marker is damaged: see `repair`.
Source: EXIF 2.3, tag 0x0112, for the orientations.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile
from torch import Tensor

from multicoca.modality import as_array
from multicoca.reading import UnreadableFileError, refuse_broken
from multicoca_image.repair import with_end_marker, without_ancillary_chunks

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

OBJECTS = (
    "a PIL picture, or an array or tensor [height, width, 1, 3 or 4], [1, 3 or 4, height, width] or [height, width], "
    "uint8, uint16 or floats in [0, 1]"
)

_READERS: tuple[tuple[str, Callable[[bytes], bool], type[ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    ("GIF", lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
)
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
_REPAIRS: dict[str, Callable[[bytes], bytes | None]] = {"JPEG": with_end_marker, "PNG": without_ancillary_chunks}
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_LEAST_GREY_PX = 16  # a side of a grey picture; a narrower array is more often a table of numbers
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, max_pixels: int, name: str = "the image") -> Image.Image:
    """Decodes an image file; of an animation, the first frame.

    Args:
        data: the content of the file.
        max_pixels: width times height that is accepted at the most.
        name: how messages call the file.

    Returns:
        An RGB picture, turned upright.

    Raises:
        UnreadableFileError: the content is empty, of another kind, too large or broken.
    """
    kind, reader = _find_reader(data, name)
    with refuse_broken(f"{name} is a broken {kind} file"):
        try:
            with refuse_broken():
                return _decode(reader, data, max_pixels)
        except UnreadableFileError:  # the picture may be whole where something beside it is not
            repaired = _REPAIRS[kind](data) if kind in _REPAIRS else None
            if repaired is None:
                raise
        return _decode(reader, repaired, max_pixels)


def suffix_of(head: bytes) -> str:
    """Returns the suffix of an image file by its first bytes, "" for other files."""
    return next((_ENDINGS[kind] for kind, accepts, _ in _READERS if accepts(head[:16])), "")


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL picture or has the shape of one."""
    if isinstance(value, Image.Image):
        return True
    if not isinstance(value, (np.ndarray, Tensor)):
        return False
    if value.ndim == 2:
        return min(value.shape) >= _LEAST_GREY_PX
    return value.ndim == 3 and (value.shape[0] in _CHANNELS or value.shape[2] in _CHANNELS)


def picture_of(value: Any, max_pixels: int) -> Image.Image:
    """Turns a picture in memory into what `decode_image` returns for a file of it.

    Args:
        value: a PIL picture, which is turned as its EXIF says, an array or a tensor.
        max_pixels: width times height that is accepted at the most.

    Raises:
        UnreadableFileError: it is none of these, or an array of another shape, type or range.
    """
    image = value if isinstance(value, Image.Image) else _from_array(value)
    _check_size(image, max_pixels)
    with refuse_broken("the picture cannot be used"):
        if image.mode == "F":
            raise UnreadableFileError("its mode is F, floats of an unknown range; convert it to RGB or an array")
        image.load()
        return _to_rgb(_turn_upright(image), image.format == "BMP")


def _from_array(value: Any) -> Image.Image:
    array = as_array(value)
    if array is None:
        raise UnreadableFileError(f"got {type(value).__name__}; expected {OBJECTS}")
    got = f"got {array.dtype} of shape {list(array.shape)}"
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] in _CHANNELS:
        raise UnreadableFileError(f"{got}, whose channels may be its first or its last dimension; give a PIL picture")
    if array.ndim == 3 and array.shape[2] not in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS) or array.size == 0:
        raise UnreadableFileError(f"{got}; expected {OBJECTS}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # nor where one is NaN
            raise UnreadableFileError(f"{got} with values from {low:.4g} to {high:.4g}; expected floats in [0, 1]")
        array = (array.astype(np.float32, copy=False) * 255).round().astype(np.uint8)
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype == np.uint16 and array.ndim == 3:
        array = (array.astype(np.float32) / 257).round().astype(np.uint8)  # 65535 / 257 = 255
    if array.dtype not in (np.uint8, np.uint16):
        raise UnreadableFileError(f"{got}; expected uint8, uint16 or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableFileError(
            f"it says it has {width} x {height} = {width * height} pixels; at most {max_pixels} are decoded. "
            "Raise the processor's max_pixels if the file is to be trusted"
        )


def _decode(reader: type[ImageFile], data: bytes, max_pixels: int) -> Image.Image:
    image = reader(io.BytesIO(data))
    _check_size(image, max_pixels)
    image.load()
    return _to_rgb(_turn_upright(image), reader is BmpImagePlugin.BmpImageFile)


def _find_reader(data: bytes, name: str) -> tuple[str, type[ImageFile]]:
    if not data:
        raise UnreadableFileError(f"{name} is empty (0 bytes)")
    for kind, accepts, reader in _READERS:
        if accepts(data[:16]):
            return kind, reader
    kinds = ", ".join(kind for kind, _, _ in _READERS)
    raise UnreadableFileError(f"{name} is none of {kinds}: it starts with {data[:16]!r}")


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        with refuse_broken():
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except UnreadableFileError:  # a picture with unreadable EXIF is still a picture; it has no orientation then
        orientation = 1
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, is_bmp: bool) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        grey = np.asarray(image).astype(np.float32).clip(0, 65535) / 257  # 65535 / 257 = 255
        grey = grey.round().astype(np.uint8)
        if "transparency" in image.info:  # one value of the 16 bits
            grey[np.asarray(image) == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if is_bmp and image.getchannel("A").getextrema()[1] == 0:
            return image.convert("RGB")  # the fourth byte of a BMP is more often nothing than a transparency
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
