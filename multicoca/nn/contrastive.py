"""The contrastive losses without the matrix of pairs: softmax (CLIP, CoCa) and sigmoid (SigLIP).

Rows of logits come in tiles, and gradients are formed while a tile is there, so that nothing of the size N x N is ever
kept. Logits are fp32 or wider whatever the embeddings are: in bf16 gradients would be several percent off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multicoca.nn.early_gradients import keep, multiplied
from multicoca.nn.precision import at_least_float32

_TILE_ELEMENTS, _TILE_ELEMENTS_ON_GPU = 2**23, 2**26  # logits held at a time: 32 MiB in fp32, and 256 MiB


def summed_contrastive(
    source: Float[Tensor, "batch embedding"],
    text: Float[Tensor, "batch embedding"],
    all_source: Float[Tensor, "pairs embedding"],
    all_text: Float[Tensor, "pairs embedding"],
    logit_scale: Float[Tensor, " 1"],
    first: int = 0,
    tile_elements: int | None = None,
) -> Float[Tensor, ""]:
    """Returns the cross-entropies of finding own texts by sources and own sources by texts, summed.

    Args:
        source: this rank's embeddings.
        text: those of their texts.
        all_source: the embeddings of all ranks; `source` itself in a single process.
        all_text: those of their texts; `text` itself in a single process.
        logit_scale: 1 / temperature.
        first: the place of this rank's first pair among all.
        tile_elements: logits held at a time, at the most, or those of one row; None takes 2**23, on a GPU 2**26.

    Source: CoCa (arXiv 2205.01917), equation 2.
    """
    rows = _tile_rows(all_source, tile_elements)
    if all_source is source and all_text is text:
        return _BothWays.apply(source, text, logit_scale, rows)
    to_text = _OneWay.apply(source, all_text, logit_scale, None, first, rows)
    return to_text + _OneWay.apply(text, all_source, logit_scale, None, first, rows)


def summed_sigmoid(
    source: Float[Tensor, "batch embedding"],
    all_text: Float[Tensor, "pairs embedding"],
    logit_scale: Float[Tensor, " 1"],
    logit_bias: Float[Tensor, " 1"],
    first: int = 0,
    tile_elements: int | None = None,
) -> Float[Tensor, ""]:
    """Returns -log of the probability of the right answer to "is this its text?", over own sources and all texts.

    Args:
        source: this rank's embeddings.
        all_text: the embeddings of the texts of all ranks.
        logit_scale: 1 / temperature.
        logit_bias: added to all logits.
        first: the place of this rank's first pair among all.
        tile_elements: logits held at a time, at the most, or those of one row; None takes 2**23, on a GPU 2**26.

    Source: SigLIP (arXiv 2303.15343), equation in section 3.2, as a sum.
    """
    return _OneWay.apply(source, all_text, logit_scale, logit_bias, first, _tile_rows(all_text, tile_elements))


def _tile_rows(keys: Tensor, tile_elements: int | None) -> int:
    if tile_elements is None:
        tile_elements = _TILE_ELEMENTS_ON_GPU if keys.is_cuda else _TILE_ELEMENTS
    return max(1, tile_elements // len(keys))


class _BothWays(torch.autograd.Function):
    """Softmax in both directions in one process: they share their logits."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, text: Tensor, logit_scale: Tensor, rows: int) -> Tensor:
        with torch.autocast(source.device.type, enabled=False):
            total, *found = _both_ways(*map(at_least_float32, (source, text, logit_scale)), rows)
        inputs = (source, text, logit_scale)
        keep(ctx, tuple(each.to(value.dtype).view_as(value) for each, value in zip(found, inputs, strict=True)))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return multiplied(ctx, upstream, 1)


class _OneWay(torch.autograd.Function):
    """Own queries with the keys of all ranks: softmax, or sigmoid if there is a bias."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, logit_scale: Tensor, logit_bias: Tensor | None, first: int, rows: int
    ) -> Tensor:
        bias = None if logit_bias is None else at_least_float32(logit_bias)
        with torch.autocast(queries.device.type, enabled=False):
            total, *found = _one_way(*map(at_least_float32, (queries, keys, logit_scale)), bias, first, rows)
        inputs = (queries, keys, logit_scale) if logit_bias is None else (queries, keys, logit_scale, logit_bias)
        kept = [each.to(value.dtype).view_as(value) for each, value in zip(found, inputs, strict=True)]
        keep(ctx, (*kept, *[None] * (4 - len(kept))))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return multiplied(ctx, upstream, 2)


def _both_ways(source: Tensor, text: Tensor, scale: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Returns (the sum of cross-entropies, its gradients by source, text and scale)."""
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
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, first: int, rows: int
) -> tuple[Tensor, ...]:
    """Returns (the loss, its gradients by queries, keys and scale, and by the bias if there is one)."""
    total, of_scale, of_bias = (scale.new_zeros(()) for _ in range(3))
    of_queries, of_keys = torch.empty_like(queries), torch.zeros_like(keys)
    for start in range(0, len(queries), rows):
        tile = slice(start, start + rows)
        logits = (queries[tile] * scale) @ keys.T
        right = logits.diagonal(first + start)[: len(logits)]  # a view: the logits of the pairs
        if bias is None:
            log_sums = logits.logsumexp(1, keepdim=True)
            total = total + (log_sums[:, 0] - right).sum()
            slopes = logits.sub_(log_sums).exp_()
        else:
            logits += bias
            total = total + F.softplus(logits).sum() - right.sum()
            slopes = logits.sigmoid_()
        right -= 1
        of_bias = of_bias + slopes.sum()
        torch.mm(slopes, keys, out=of_queries[tile])
        of_scale = of_scale + (of_queries[tile] * queries[tile]).sum()
        of_keys.addmm_(slopes.T, queries[tile])
    found = (total, of_queries.mul_(scale), of_keys.mul_(scale), of_scale)
    return found if bias is None else (*found, of_bias)
