"""The optimizer: AdamW over a checked partition of the parameters, warm-up and cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        lr: peak learning rate.
        beta1: decay of AdamW's mean of gradients.
        beta2: decay of its mean of squared gradients.
        weight_decay: decoupled, for matrices only.
        warmup_share: share of the steps over which the rate rises to its peak (CoCa: 2%).
        final_lr_share: the rate at the end, as a share of the peak.
        clip_norm: gradients are scaled down to this norm; 0 turns it off.
    """

    lr: float = 8e-4
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    warmup_share: float = 0.02
    final_lr_share: float = 0.0
    clip_norm: float = 1.0


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Sorts the trainable parameters into a group with weight decay and one without.

    Vectors, embeddings and learned queries or positions get none; matrices do.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    linear = {id(m.weight) for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if id(p) in linear and id(p) not in embeddings]
    rest = [p for p in trainable if id(p) not in linear or id(p) in embeddings]
    assert len(decayed) + len(rest) == len(trainable), "parameter groups must be a partition"
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Builds AdamW in its fused form."""
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Returns the rate of a step: linear warm-up, then a cosine; a pure function of the step."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    share = config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * share
