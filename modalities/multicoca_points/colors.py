"""The one rule by which all readers bring colours to [0, 1]: the type of the field decides.

8 bits are 0 to 255, 16 bits 0 to 65535, floats 0 to 1. One error is common enough to be read: a 16-bit or float field
that only holds 0 to 255, or a float field with the whole numbers of 16 bits. It is read with that scale, and a remark
names it. Text has no types: whole numbers are 8 or 16 bits there, all others floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Shaped

from multicoca.reading import UnreadableFileError

_ROUNDING = 1e-3  # by which floats may exceed 1 or fall below 0
_NAMES = (  # of the channels, in lower case, most common first
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("color_r", "color_g", "color_b"),
    ("rgb_r", "rgb_g", "rgb_b"),
    ("scalar_r", "scalar_g", "scalar_b"),
    ("scalar_red", "scalar_green", "scalar_blue"),
    ("rf", "gf", "bf"),  # CloudCompare's floats in text
)
_COLOR_WORDS = ("red", "green", "blue", "rgb", "color", "colour", "f_dc")  # a field with such a name may be a colour


def colors_from_fields(
    fields: Mapping[str, Shaped[np.ndarray, " points"]], is_text: bool = False
) -> tuple[Float32[np.ndarray, "points 3"] | None, tuple[str, ...]]:
    """Finds and scales the colours among named fields.

    Args:
        fields: values by name in lower case.
        is_text: they come from text, so that float64 is no type of theirs.

    Returns:
        (colours or None, remarks, also on fields that seem to be colours and are not understood).
    """
    for names in _NAMES:
        if all(name in fields for name in names):
            kinds = {fields[name].dtype for name in names}
            if len(kinds) > 1:
                raise UnreadableFileError(f"its colour fields {', '.join(names)} have different types")
            return unit_colors(np.stack([fields[name] for name in names], axis=1), is_text)
    for name in ("rgb", "rgba"):
        if name in fields:
            return unpacked(fields[name]), ()
    odd = sorted(name for name in fields if any(word in name for word in _COLOR_WORDS))
    return None, (f"its colours are not read: no known names in {', '.join(odd)}",) if odd else ()


def unit_colors(
    values: Shaped[np.ndarray, "points 3"], is_text: bool = False, whole_bits: bool = False
) -> tuple[Float32[np.ndarray, "points 3"], tuple[str, ...]]:
    """Brings colours to [0, 1] by their type.

    Args:
        values: one colour in each row.
        is_text: they come from text, so that float64 is no type of theirs.
        whole_bits: 0 and 1 in text are 8 bits, not floats.

    Returns:
        (colours, NaN where a value is not finite; remarks).

    Raises:
        UnreadableFileError: they fit no scale.
    """
    if values.dtype.kind not in "fiu":
        raise UnreadableFileError(f"the type of its colours is {values.dtype}; it must be numbers")
    if values.dtype == np.int8:
        values = values.view(np.uint8)  # 'char' in a PLY file
    colors = values.astype(np.float32 if values.dtype != np.float64 else np.float64, order="C")
    low, high = (float(colors.min()), float(colors.max())) if colors.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        colors[~np.isfinite(colors)] = np.nan
        known = colors[~np.isnan(colors)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scale, remark = _scale(colors, values.dtype, low, high, is_text, whole_bits)
    rgb = colors.astype(np.float32, copy=False)
    if scale != 1:
        rgb /= np.float32(scale)
    elif high > 1 or low < 0:
        np.clip(rgb, 0, 1, out=rgb)
    return rgb, (remark,) if remark else ()


def _scale(
    colors: np.ndarray, dtype: np.dtype, low: float, high: float, is_text: bool, whole_bits: bool
) -> tuple[float, str]:
    """Returns (what a full channel is, a remark or "")."""
    if -_ROUNDING <= low < 0 and dtype.kind == "f" and high <= 1 + _ROUNDING:
        return 1.0, ""
    if low >= 0:
        if dtype == np.uint8:
            return 255.0, ""
        if dtype in (np.uint16, np.int16):
            return (255.0, "its 16-bit colours only hold 0 to 255 and are read so") if high <= 255 else (65535.0, "")
        if dtype.kind in "iu" or (is_text and (high > 1 or whole_bits) and _are_whole(colors)):
            if high <= 65535:
                return (255.0 if high <= 255 else 65535.0), ""
        elif high <= 1 + _ROUNDING:
            return 1.0, ""
        elif 2 <= high <= 255:  # between 1 and 2 neither scale is plausible
            return 255.0, "its float colours go to 255 and are read so"
        elif 255 < high <= 65535 and _are_whole(colors):
            return 65535.0, "its float colours go to 65535 and are read so"
    raise UnreadableFileError(
        f"its colours go from {low:.4g} to {high:.4g}; they must lie in [0, 1], [0, 255] or [0, 65535] "
        "(are columns 4 to 6 normals? Then keep only the first three)"
    )


def _are_whole(colors: np.ndarray) -> bool:
    return bool(((colors == np.rint(colors)) | np.isnan(colors)).all())


def unpacked(packed: Shaped[np.ndarray, " points"]) -> Float32[np.ndarray, "points 3"]:
    """Returns the colours of PCL's packed field: 0xRRGGBB in the bits of a 32-bit number.

    The number is an integer, or the bits are those of a float32. Text of a float field may hold either, or "nan" for
    a point without colour; in binary data a NaN is a colour like others (0xFF in the highest byte makes one).
    """
    is_missing = np.isnan(packed) if packed.dtype == np.float64 else None
    if packed.dtype.kind == "f" and packed.dtype.itemsize == 8:  # from text
        is_integer = (packed == np.rint(packed)) & (np.abs(packed) >= 1) & (np.abs(packed) < 2**32)
        as_float = np.clip(packed, -3.4e38, 3.4e38).astype(np.float32).view(np.uint32)
        bits = np.where(is_integer, np.where(is_integer, packed, 0).astype(np.int64), as_float.astype(np.int64))
    elif packed.dtype == np.float32:
        bits = np.ascontiguousarray(packed).view(np.uint32).astype(np.int64)
    else:
        bits = packed.astype(np.int64)
    channels = np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1)
    rgb = (channels / 255).astype(np.float32)
    if is_missing is not None:
        rgb[is_missing] = np.nan
    return rgb
