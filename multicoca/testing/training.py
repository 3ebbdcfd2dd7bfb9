"""The check of training: a few steps of a small CoCa with the encoder in it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from multicoca.modality import Modality
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.model.losses import contrastive_loss


def check_training(modality: Modality, inputs: dict[str, Tensor]) -> None:
    """A gradient reaches every parameter of the encoder, and the loss falls."""
    sizes = dict(width=32, num_heads=2, mlp_width=64, unimodal_layers=1, multimodal_layers=1, embedding_width=16)
    config = ModelConfig(**sizes, pooler="none", num_queries=2, context_length=8)
    model = CoCa(config, {modality.name: copy.deepcopy(modality.encoder)}, 20, torch.Generator().manual_seed(0))
    rows = len(next(iter(inputs.values())))
    ids = torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(1))
    # AdamW moves every weight by about the rate: with 1e-4, a layer of thousands of inputs overshoots at first
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    losses = []
    for _ in range(4):
        outputs = model(modality.name, inputs, ids, torch.full((rows,), 6))
        loss = outputs.caption_loss / (5 * rows)
        loss = loss + contrastive_loss(outputs.source, outputs.text, outputs.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            encoder = model.encoders[modality.name]
            named = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
            without = [name for name, p in named if p.grad is None or not p.grad.any()]
            assert not without, f"no gradient reaches {', '.join(without)}"
            assert all(p.grad.isfinite().all() for _, p in named), "gradients must be finite"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], f"training must lower the loss on its own batch; got {losses}"
