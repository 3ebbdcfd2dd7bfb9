"""`Tokens`: the only type that crosses from a modality into the core.

An encoder turns its inputs into a sequence of vectors; what those vectors stand for (patches, frames, groups
of points, ...) stays with the encoder. The mask is part of the type, so that padding can never be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences.

    Attributes:
        values: the token vectors.
        mask: True marks a real token, False marks padding; None means that all are real.
        grid: (height, width) or (frames, height, width) when the tokens lie on a grid, the last side varying
            fastest; None for a set.
    """

    values: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"] | None = None
    grid: tuple[int, ...] | None = None

    def with_values(self, values: Float[Tensor, "batch tokens new_width"]) -> Tokens:
        """Returns tokens with other vectors and the same mask and grid."""
        return replace(self, values=values)
