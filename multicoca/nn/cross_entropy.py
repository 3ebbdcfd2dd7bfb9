"""Cross-entropy over a vocabulary without the matrix of tokens by words.

Rows go through the last layer in chunks, and a chunk's gradients are formed while its logits are there: nothing of
the size tokens x vocabulary is ever kept. The loss is a sum, so that what comes back through it is one number, by
which the kept gradients are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicoca.nn.precision import at_least_float32

NO_TARGET = -100  # what torch's cross_entropy leaves out
_CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in fp32


def summed_cross_entropy(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " rows"],
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> Float[Tensor, ""]:
    """Returns the sum of cross_entropy(hidden @ weight.T, targets), in fp32 or wider.

    Args:
        hidden: what the last layer reads.
        weight: of the last layer, which has no bias.
        targets: the right words; NO_TARGET in rows that do not count.
        chunk_elements: logits held at a time, at the most, or those of one row.

    Under autocast the matrix products are in its type, the logits and the gradient of the weight in fp32.
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets, max(1, chunk_elements // len(weight)))


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            used, words = hidden.to(dtype), weight.to(dtype)
            of_hidden = torch.empty_like(used) if ctx.needs_input_grad[0] else None
            of_weight = at_least_float32(torch.zeros_like(weight)) if ctx.needs_input_grad[1] else None
            total = at_least_float32(hidden.new_zeros(()))
            for start in range(0, len(hidden), chunk_rows):
                rows = slice(start, start + chunk_rows)
                loss, slopes = _chunk(used[rows], words, targets[rows], any(ctx.needs_input_grad))
                total = total + loss
                if of_hidden is not None:
                    torch.mm(slopes, words, out=of_hidden[rows])
                if of_weight is not None and of_weight.dtype == dtype:
                    of_weight.addmm_(slopes.T, used[rows])
                elif of_weight is not None:
                    of_weight += slopes.T @ used[rows]
        ctx.gradients = (
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used up by an earlier backward pass; compute it anew")
        of_hidden, of_weight = (None if each is None else each.mul_(upstream) for each in ctx.gradients)
        ctx.gradients = None
        return of_hidden, of_weight, None, None


def _chunk(hidden: Tensor, weight: Tensor, targets: Tensor, wants_slopes: bool) -> tuple[Tensor, Tensor | None]:
    """Returns a chunk's loss and its derivative by the logits, in the type of `hidden`."""
    logits = at_least_float32(hidden @ weight.T)
    counts = targets != NO_TARGET
    places = targets.clamp(min=0)[:, None]
    log_sums = logits.logsumexp(dim=-1, keepdim=True)
    loss = ((log_sums - logits.gather(1, places))[:, 0] * counts).sum()
    if not wants_slopes:
        return loss, None
    slopes = logits.sub_(log_sums).exp_()
    slopes.scatter_add_(1, places, -torch.ones_like(places, dtype=slopes.dtype))
    return loss, slopes.mul_(counts[:, None]).to(hidden.dtype)
