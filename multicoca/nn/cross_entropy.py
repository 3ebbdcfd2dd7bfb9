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
# logits held at a time: 64 MiB in fp32, for caches; on a GPU 512 MiB, since each chunk rewrites the weight's gradient
_CHUNK_ELEMENTS, _CHUNK_ELEMENTS_ON_GPU = 2**24, 2**27
_BAND = 2**13  # words whose gradient is summed at a time where it is wider than the products


def summed_cross_entropy(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " rows"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_elements: int | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Returns the sum of cross_entropy(hidden @ weight.T, targets), in fp32 or wider, and how many rows are right.

    Args:
        hidden: what the last layer reads.
        weight: of the last layer, which has no bias.
        targets: the right words; NO_TARGET in rows that do not count.
        label_smoothing: share of the target that is spread over all words (Szegedy et al., arXiv 1512.00567).
        z_loss: factor of log(sum of exp(logits)) squared, which is added (ST-MoE, arXiv 2202.08906, equation 5).
        chunk_elements: logits held at a time, at the most, or those of one row; None takes 2**24, on a GPU 2**27, or
            half of it where the products are narrower than fp32 and so are held beside the logits.

    Returns:
        (the sum, the number of rows whose target has the largest logit).

    Under autocast the matrix products are in its type, the logits and the gradient of the weight in fp32.
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets, label_smoothing, z_loss, chunk_elements)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float,
        z_loss: float,
        chunk_elements: int | None,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            used, words = hidden.to(dtype), weight.to(dtype)
            of_hidden = torch.empty_like(used) if ctx.needs_input_grad[0] else None
            of_weight = at_least_float32(torch.zeros_like(weight)) if ctx.needs_input_grad[1] else None
            total = at_least_float32(hidden.new_zeros(()))
            right = torch.zeros((), dtype=torch.long, device=hidden.device)
            if chunk_elements is None:
                at_once = _CHUNK_ELEMENTS if device == "cpu" else _CHUNK_ELEMENTS_ON_GPU
                chunk_elements = at_once // (1 if dtype.itemsize >= 4 else 2)
            chunk_rows = max(1, chunk_elements // len(words))
            for start in range(0, len(used), chunk_rows):
                rows = slice(start, start + chunk_rows)
                slopes = None  # frees those of the last chunk before there are new logits
                loss, correct, slopes = _chunk(
                    used[rows], words, targets[rows], label_smoothing, z_loss, any(ctx.needs_input_grad)
                )
                total, right = total + loss, right + correct
                if of_hidden is not None:
                    torch.mm(slopes, words, out=of_hidden[rows])
                if of_weight is not None:
                    _add_products(of_weight, slopes, used[rows])
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


def _add_products(total: Tensor, slopes: Tensor, hidden: Tensor) -> None:
    """Adds slopes.T @ hidden to a total, whose type may be a wider one."""
    if total.dtype == slopes.dtype:
        torch.addmm(total, slopes.T, hidden, out=total)  # FlopCounterMode does not know addmm_
        return
    if total.is_cuda:  # the products are summed in fp32, too
        torch.addmm(total, slopes.T, hidden, out_dtype=total.dtype, out=total)
        return
    for start in range(0, len(total), _BAND):
        band = slice(start, start + _BAND)
        total[band] += slopes[:, band].T @ hidden


def _chunk(
    hidden: Tensor, words: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, wants_slopes: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns a chunk's loss, how many rows are right, and the loss's derivative by the logits in the products' type.

    The derivative is formed in the memory of the logits.
    """
    logits = at_least_float32(hidden @ words.T)
    places = targets.clamp(min=0)[:, None]
    counts = (targets != NO_TARGET)[:, None].to(logits.dtype)
    largest, found = logits.max(1, keepdim=True)
    right = (found[:, 0] == targets).sum()
    logits -= largest
    losses = (label_smoothing - 1) * logits.gather(1, places)
    if label_smoothing:
        losses -= label_smoothing * logits.mean(1, keepdim=True)
    slopes = logits.exp_()
    sums = slopes.sum(1, keepdim=True)
    losses += sums.log()
    rises = torch.ones_like(sums)  # of the loss with the log of the sum
    if z_loss:
        log_sums = largest + sums.log()
        losses += z_loss * log_sums.square()
        rises += 2 * z_loss * log_sums
    loss = (losses * counts).sum()
    if not wants_slopes:
        return loss, right, None
    slopes *= counts * rises / sums
    if label_smoothing:
        slopes -= counts * (label_smoothing / slopes.shape[1])
    slopes.scatter_add_(1, places, counts * (label_smoothing - 1.0))
    return loss, right, slopes.to(words.dtype)
