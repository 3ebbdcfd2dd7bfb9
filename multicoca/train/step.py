"""One optimizer step: a batch of every modality, gradients summed over them and over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from multicoca.data.sample import Batch
from multicoca.distributed.collectives import sum_gradients, sum_over_ranks
from multicoca.model.coca import CoCa
from multicoca.model.losses import contrastive_loss
from multicoca.train.optim import Optimizers


@dataclass(frozen=True)
class LossConfig:
    """The two losses' weights.

    Attributes:
        contrastive_weight: CoCa's is 1.
        captioning_weight: CoCa's is 2.
        contrastive_reduction: "sum" of the two directions as in the paper, or "mean" as in open_clip.
    """

    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    contrastive_reduction: str = "sum"


def accumulate_gradients(
    model: CoCa, batches: Sequence[Batch], config: LossConfig, autocast: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Adds the gradients of a step's batches, over all ranks, to the parameters.

    Each modality counts the same; its captioning loss is a mean over its tokens in the whole step on all ranks.

    Args:
        model: the model, in training mode.
        batches: this rank's batches, the same modalities in the same order on every rank.
        config: the losses' weights.
        autocast: dtype for autocast, or None for none.

    Returns:
        The global losses by TensorBoard tag, without gradients.
    """
    device = next(model.parameters()).device
    counts: dict[str, torch.Tensor] = {}
    for batch in batches:
        local = (batch.lengths - 1).sum().to(device)
        counts[batch.modality] = counts.get(batch.modality, 0) + local
    counts = dict(zip(counts, sum_over_ranks(torch.stack(list(counts.values()))).unbind(), strict=True))
    logged: dict[str, torch.Tensor] = {}
    for batch in batches:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            outputs = model(batch.modality, batch.inputs, batch.ids, batch.lengths)
        contrastive = contrastive_loss(outputs.source, outputs.text, outputs.logit_scale, config.contrastive_reduction)
        captioning = outputs.caption_loss / counts[batch.modality]
        total = config.contrastive_weight * contrastive + config.captioning_weight * captioning
        (total / len(counts)).backward()
        for name, loss in (("contrastive", contrastive), ("captioning", captioning)):
            tag = f"loss/{name}/{batch.modality}"
            logged[tag] = logged.get(tag, 0) + loss.detach()
    sum_gradients(model)
    return dict(zip(logged, sum_over_ranks(torch.stack(list(logged.values()))).unbind(), strict=True))


def optimizer_step(model: nn.Module, optimizers: Optimizers, rates: Sequence[float], clip_norm: float) -> torch.Tensor:
    """Clips, updates with each optimizer at its learning rate, and clears the gradients.

    Returns:
        The gradients' norm before clipping.
    """
    limit = clip_norm if clip_norm > 0 else float("inf")
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
