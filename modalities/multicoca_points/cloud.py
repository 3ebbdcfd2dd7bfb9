"""`PointCloud`: what every reader of this modality gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32


@dataclass(frozen=True)
class PointCloud:
    """Points in the axes and the unit of their file.

    Attributes:
        xyz: finite positions; readers give float64, for in float32 map coordinates (1e6 m) lose an object's shape.
        rgb: colours in [0, 1], NaN where a point has none; None when no point has a colour.
        remarks: what was decided while reading, e.g. on the scale of colours.
    """

    xyz: Float[np.ndarray, "points 3"]
    rgb: Float32[np.ndarray, "points 3"] | None = None
    remarks: tuple[str, ...] = ()
