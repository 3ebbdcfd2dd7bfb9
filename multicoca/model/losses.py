"""The two losses of CoCa under one gradient convention.

Every loss returns this rank's share of the global mean: a local sum divided by a global count. The engine sums
gradients over ranks, so one rank with a batch of 8 and four ranks with batches of 2 give the same gradients,
the temperature's included. Source: CoCa (arXiv 2205.01917), equations 1 to 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from multicoca.distributed.collectives import gather, rank
from multicoca.nn.precision import at_least_float32


def contrastive_loss(
    source: Float[Tensor, "batch embedding"],
    text: Float[Tensor, "batch embedding"],
    logit_scale: Float[Tensor, " 1"],
    reduction: str = "sum",
) -> Float[Tensor, ""]:
    """Cross-entropy of finding the text of each source and the source of each text, among all ranks' pairs.

    Args:
        source: embeddings of length 1 of this rank's sources.
        text: embeddings of length 1 of their texts.
        logit_scale: 1 / temperature.
        reduction: "sum" adds the two directions (the paper's convention), "mean" averages them (open_clip's).

    Returns:
        This rank's share of the global mean, fp32 or wider.

    Source: CoCa, equation 2.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"loss.contrastive_reduction is '{reduction}'; choose 'sum' or 'mean'")
    all_source, all_text = gather(source), gather(text)
    labels = torch.arange(len(source), device=source.device) + rank() * len(source)
    to_text = F.cross_entropy(logit_scale * source @ all_text.T, labels, reduction="sum")
    to_source = F.cross_entropy(logit_scale * text @ all_source.T, labels, reduction="sum")
    total = (to_text + to_source) / len(all_source)
    return total if reduction == "sum" else total / 2


def captioning_loss(
    logits: Float[Tensor, "targets vocabulary"],
    targets: Int[Tensor, " targets"],
    count: float | int | Tensor,
) -> Float[Tensor, ""]:
    """Cross-entropy of the next tokens.

    Args:
        logits: predictions at real tokens.
        targets: the tokens that came next; -100 where none is predicted.
        count: targets of this modality in the whole optimizer step, over all micro-batches and ranks.

    Returns:
        The local sum divided by `count`, fp32 or wider.

    Source: CoCa, equation 3.
    """
    return F.cross_entropy(at_least_float32(logits), targets, reduction="sum") / count
