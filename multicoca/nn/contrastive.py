"""The contrastive cross-entropy without the matrix of pairs.

Rows of logits come in tiles, and gradients are formed while a tile is there, so that nothing of the size N x N is ever
kept. The loss is one number, by which the kept gradients are multiplied in the backward pass. Logits are fp32 or wider
whatever the embeddings are: in bf16 gradients would be several percent off.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from multicoca.nn.precision import at_least_float32

_TILE_ELEMENTS = 2**23  # logits held at a time: 32 MiB in fp32


def summed_contrastive(
    source: Float[Tensor, "batch embedding"],
    text: Float[Tensor, "batch embedding"],
    all_source: Float[Tensor, "pairs embedding"],
    all_text: Float[Tensor, "pairs embedding"],
    logit_scale: Float[Tensor, " 1"],
    first: int = 0,
    tile_elements: int = _TILE_ELEMENTS,
) -> Float[Tensor, ""]:
    """Returns the cross-entropies of finding own texts by sources and own sources by texts, summed.

    Args:
        source: this rank's embeddings.
        text: those of their texts.
        all_source: the embeddings of all ranks.
        all_text: those of their texts.
        logit_scale: 1 / temperature.
        first: the place of this rank's first pair among all.
        tile_elements: logits held at a time, at the most, or those of one row.

    Source: CoCa (arXiv 2205.01917), equation 2.
    """
    rows = max(1, tile_elements // len(all_source))
    return _SummedContrastive.apply(source, text, all_source, all_text, logit_scale, first, rows)


class _SummedContrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        text: Tensor,
        all_source: Tensor,
        all_text: Tensor,
        logit_scale: Tensor,
        first: int,
        rows: int,
    ) -> Tensor:
        inputs = (source, text, all_source, all_text)
        with torch.autocast(source.device.type, enabled=False):
            wide = [at_least_float32(value) for value in inputs]
            scale = at_least_float32(logit_scale)
            if len(source) == len(all_source):
                total, of_source, of_text, of_scale = _alone(wide[0], wide[1], scale, rows)
                found = [of_source, of_text, None, None]
            else:
                total, of_source, of_all_text, of_scale = _one_way(wide[0], wide[3], scale, first, rows)
                back, of_text, of_all_source, more = _one_way(wide[1], wide[2], scale, first, rows)
                total, of_scale = total + back, of_scale + more
                found = [of_source, of_text, of_all_source, of_all_text]
        kept = [None if g is None else g.to(value.dtype) for g, value in zip(found, inputs, strict=True)]
        ctx.gradients = (*kept, of_scale.to(logit_scale.dtype).reshape(logit_scale.shape))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used up by an earlier backward pass; compute it anew")
        gradients = [None if each is None else each.mul_(upstream) for each in ctx.gradients]
        ctx.gradients = None
        return (*gradients, None, None)


def _alone(source: Tensor, text: Tensor, scale: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions in one process: they share their logits.

    Returns:
        (the sum, its gradients by source, text and scale).
    """
    count = len(source)
    own = scale * (source * text).sum(1)
    to_text, to_source = source.new_empty(count), source.new_full((count,), -torch.inf)
    buffer = source.new_empty(min(rows, count), count)
    for start in range(0, count, rows):
        tile = slice(start, start + rows)
        logits = torch.mm(source[tile] * scale, text.T, out=buffer[: len(source[tile])])
        to_text[tile] = logits.logsumexp(1)
        to_source = torch.logaddexp(to_source, logits.logsumexp(0))
    total = (to_text + to_source - 2 * own).sum()
    of_source, of_text, of_scale = torch.empty_like(source), torch.zeros_like(text), scale.new_zeros(())
    for start in range(0, count, rows):
        tile = slice(start, start + rows)
        logits = torch.mm(source[tile] * scale, text.T, out=buffer[: len(source[tile])])
        slopes = (logits - to_source).exp_()
        slopes += logits.sub_(to_text[tile, None]).exp_()
        slopes.diagonal(start).sub_(2)
        torch.mm(slopes, text, out=of_source[tile])
        of_scale = of_scale + (of_source[tile] * source[tile]).sum()
        of_text.addmm_(slopes.T, source[tile])
    return total, of_source.mul_(scale), of_text.mul_(scale), of_scale


def _one_way(
    queries: Tensor, keys: Tensor, scale: Tensor, first: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finds the key of each query among those of all ranks.

    Returns:
        (the sum of cross-entropies, its gradients by queries, keys and scale).
    """
    total, of_scale = scale.new_zeros(()), scale.new_zeros(())
    of_queries, of_keys = torch.empty_like(queries), torch.zeros_like(keys)
    for start in range(0, len(queries), rows):
        tile = slice(start, start + rows)
        logits = (queries[tile] * scale) @ keys.T
        places = torch.arange(len(logits), device=logits.device)
        log_sums = logits.logsumexp(1, keepdim=True)
        total = total + (log_sums[:, 0] - logits[places, places + first + start]).sum()
        slopes = logits.sub_(log_sums).exp_()
        slopes[places, places + first + start] -= 1
        torch.mm(slopes, keys, out=of_queries[tile])
        of_scale = of_scale + (of_queries[tile] * queries[tile]).sum()
        of_keys.addmm_(slopes.T, queries[tile])
    return total, of_queries.mul_(scale), of_keys.mul_(scale), of_scale
