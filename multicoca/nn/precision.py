"""Where numbers must be wide: embeddings, logits and losses are fp32 whatever computes them, and fp64 stays fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """Returns the tensor in fp32, or as it is when it is fp64."""
    return value if value.dtype == torch.float64 else value.float()
