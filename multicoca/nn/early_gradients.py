"""For losses that form their gradients in the forward pass, while what they need of a tile is there.

Such a loss is one number, by which the kept gradients are multiplied in the backward pass, in place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def keep(ctx: Any, gradients: tuple[Tensor | None, ...]) -> None:
    """Keeps the gradients of the loss by its first inputs for the backward pass."""
    ctx.gradients = gradients


def multiplied(ctx: Any, upstream: Tensor, others: int) -> tuple[Tensor | None, ...]:
    """Returns the kept gradients times what comes back, and None for as many other inputs.

    Raises:
        RuntimeError: this is the second backward pass.
    """
    if ctx.gradients is None:
        raise RuntimeError("the gradients of this loss were used up by an earlier backward pass; compute it anew")
    gradients = [None if each is None else each.mul_(upstream) for each in ctx.gradients]
    ctx.gradients = None
    return (*gradients, *[None] * others)
