"""Cross-entropy over a vocabulary without the matrix of tokens by words.

Rows go through the last layer in chunks, and a chunk's gradients are formed while its logits are there: nothing of
the size tokens x vocabulary is ever kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicoca.nn.early_gradients import keep, multiplied
from multicoca.nn.precision import at_least_float32

NO_TARGET = -100  # what torch's cross_entropy leaves out
_CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in fp32


def summed_cross_entropy(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " rows"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Returns the sum of cross_entropy(hidden @ weight.T, targets), in fp32 or wider, and how many rows are right.

    Args:
        hidden: what the last layer reads.
        weight: of the last layer, which has no bias.
        targets: the right words; NO_TARGET in rows that do not count.
        label_smoothing: share of the target that is spread over all words (Szegedy et al., arXiv 1512.00567).
        z_loss: factor of log(sum of exp(logits)) squared, which is added (ST-MoE, arXiv 2202.08906, equation 5).
        chunk_elements: logits held at a time, at the most, or those of one row.

    Returns:
        (the sum, the number of rows whose target has the largest logit).

    Under autocast the matrix products are in its type, the logits and the gradient of the weight in fp32.
    """
    chunk_rows = max(1, chunk_elements // len(weight))
    return _SummedCrossEntropy.apply(hidden, weight, targets, label_smoothing, z_loss, chunk_rows)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float,
        z_loss: float,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            used, words = hidden.to(dtype), weight.to(dtype)
            of_hidden = torch.empty_like(used) if ctx.needs_input_grad[0] else None
            of_weight = at_least_float32(torch.zeros_like(weight)) if ctx.needs_input_grad[1] else None
            total = at_least_float32(hidden.new_zeros(()))
            right = torch.zeros((), dtype=torch.long, device=hidden.device)
            for start in range(0, len(hidden), chunk_rows):
                rows = slice(start, start + chunk_rows)
                logits = at_least_float32(used[rows] @ words.T)
                right += (logits.argmax(1) == targets[rows]).sum()
                loss, slopes = _chunk(logits, targets[rows], label_smoothing, z_loss, any(ctx.needs_input_grad))
                total = total + loss
                slopes = None if slopes is None else slopes.to(dtype)
                if of_hidden is not None:
                    torch.mm(slopes, words, out=of_hidden[rows])
                if of_weight is not None and of_weight.dtype == dtype:
                    of_weight.addmm_(slopes.T, used[rows])
                elif of_weight is not None:
                    of_weight += slopes.T @ used[rows]
        ctx.mark_non_differentiable(right)
        keep(
            ctx,
            (
                None if of_hidden is None else of_hidden.to(hidden.dtype),
                None if of_weight is None else of_weight.to(weight.dtype),
            ),
        )
        return total, right

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, of_right: Tensor) -> tuple[Tensor | None, ...]:
        del of_right
        return multiplied(ctx, upstream, 4)


def _chunk(
    logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, wants_slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns a chunk's loss and its derivative by the logits, which takes their place."""
    counts = (targets != NO_TARGET)[:, None]
    places = targets.clamp(min=0)[:, None]
    log_sums = logits.logsumexp(dim=-1, keepdim=True)
    losses = log_sums - (1 - label_smoothing) * logits.gather(1, places) + z_loss * log_sums.square()
    if label_smoothing:
        losses -= label_smoothing * logits.mean(1, keepdim=True)
    loss = (losses * counts).sum()
    if not wants_slopes:
        return loss, None
    slopes = logits.sub_(log_sums).exp_()
    if z_loss:
        slopes *= 1 + 2 * z_loss * log_sums
    if label_smoothing:
        slopes -= label_smoothing / logits.shape[1]
    slopes.scatter_add_(1, places, torch.full_like(log_sums, label_smoothing - 1))
    return loss, slopes.mul_(counts)
