"""Where numbers must be wide: embeddings, logits and losses are fp32 whatever computes them, and fp64 stays fp64."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def find_dtype(name: str | torch.dtype) -> torch.dtype:
    """Returns the type of a model's parameters by its name, a key of `DTYPES`, or as it is.

    Raises:
        ValueError: it is none of these.
    """
    if name in DTYPES.values():
        return name
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; choose one of {', '.join(DTYPES)}, or torch's of the same kinds")
    return DTYPES[name]


def at_least_float32(value: Tensor) -> Tensor:
    """Returns the tensor in fp32, or as it is when it is fp64."""
    return value if value.dtype == torch.float64 else value.float()
