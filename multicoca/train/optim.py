"""The optimizers over a checked partition of the parameters: AdamW, beside it Muon if asked; warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, optionally Muon for the hidden matrices, and their schedule.

    Attributes:
        lr: AdamW's peak learning rate.
        muon_lr: peak learning rate of Muon (arXiv 2502.16982, updates as large as AdamW's at the same rate) for the
            weights of linear layers, all but those that give logits over the vocabulary; None leaves these to
            AdamW too. Small models learn from half as many samples with it.
        beta1: decay of AdamW's mean of gradients.
        beta2: decay of its mean of squared gradients.
        weight_decay: decoupled, for matrices only, in both.
        warmup_share: share of the steps over which the rate rises to its peak (CoCa: 2%).
        final_lr_share: the rate at the end, as a share of the peak.
        clip_norm: gradients are scaled down to this norm; 0 turns it off.
    """

    lr: float = 8e-4
    muon_lr: float | None = None
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    warmup_share: float = 0.02
    final_lr_share: float = 0.0
    clip_norm: float = 1.0


Optimizers = Sequence[torch.optim.Optimizer]


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sorts the trainable parameters into "hidden", "matrices" and "rest".

    Hidden are the weights between vectors of features, which Muon may take. Other matrices decay too: convolutions
    and the layers that give logits over the vocabulary. Vectors, embeddings, learned queries and positions do not.
    """
    kinds: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not name.endswith("caption_head"):
            kinds[layer.weight] = "hidden"
        elif isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            kinds[layer.weight] = "matrices"
    kinds.update((layer.weight, "rest") for layer in module.modules() if isinstance(layer, nn.Embedding))
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "matrices": [], "rest": []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[kinds.get(parameter, "rest")].append(parameter)
    return groups


def build_optimizers(module: nn.Module, config: OptimConfig) -> Optimizers:
    """Builds AdamW in its fused form and, with `muon_lr`, Muon."""
    groups = parameter_groups(module)
    decay, with_muon = config.weight_decay, config.muon_lr is not None
    decayed = groups["matrices"] if with_muon else groups["hidden"] + groups["matrices"]
    parts = [{"params": decayed, "weight_decay": decay}, {"params": groups["rest"], "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(parts, lr=config.lr, betas=betas, fused=True)]
    if with_muon:
        scale = "match_rms_adamw"
        optimizers.append(torch.optim.Muon(groups["hidden"], lr=config.muon_lr, weight_decay=decay, adjust_lr_fn=scale))
    return optimizers


def learning_rates(step: int, num_steps: int, config: OptimConfig) -> list[float]:
    """Returns each optimizer's rate at a step: linear warm-up, then a cosine; a pure function of the step."""
    warmup = max(1, round(config.warmup_share * num_steps))
    progress = (step - warmup) / max(1, num_steps - warmup)
    share = config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2
    if step < warmup:
        share = (step + 1) / warmup
    return [peak * share for peak in (config.lr, config.muon_lr) if peak is not None]
