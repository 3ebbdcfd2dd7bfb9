"""`PointCloud`: what every reader of this modality gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class PointCloud:
    """Points in the axes and the unit of their file.

    Attributes:
        xyz: finite positions.
        rgb: colours in [0, 1], NaN where a point has none; None when no point has a colour.
    """

    xyz: Float32[np.ndarray, "points 3"]
    rgb: Float32[np.ndarray, "points 3"] | None = None
