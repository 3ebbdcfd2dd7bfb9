"""Where numbers must be wide: embeddings, logits and losses are fp32 whatever computes them, and fp64 stays fp64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def exact_products() -> Iterator[None]:
    """Context in which GPUs multiply and convolve fp32 numbers as such.

    PyTorch lets convolutions round their inputs to TF32 (10 bits), and matrix products too where a program allows it.
    """
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def at_least_float32(value: Tensor) -> Tensor:
    """Returns the tensor in fp32, or as it is when it is fp64."""
    return value if value.dtype == torch.float64 else value.float()
