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

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from multicoca.reading import UnreadableFileError, refuse_broken
from multicoca_image.repair import with_end_marker, without_ancillary_chunks

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

_READERS: tuple[tuple[str, Callable[[bytes], bool], type[ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    ("GIF", lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
)
_REPAIRS: dict[str, Callable[[bytes], bytes | None]] = {"JPEG": with_end_marker, "PNG": without_ancillary_chunks}
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


def _decode(reader: type[ImageFile], data: bytes, max_pixels: int) -> Image.Image:
    image = reader(io.BytesIO(data))
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableFileError(
            f"it says it has {width} x {height} = {width * height} pixels; at most {max_pixels} are decoded. "
            "Raise the processor's max_pixels if the file is to be trusted"
        )
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
