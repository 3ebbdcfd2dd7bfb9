"""One optimizer step: micro-batches of every modality, gradients summed over them and over ranks.

The micro-batches of a batch are one batch for the contrastive loss: a first pass gives the embeddings of all,
the loss gives the embeddings' gradients, and a second pass over each micro-batch, with the same random numbers, brings
them to the parameters (GradCache, Gao et al., arXiv 2101.06983). So gradients are those of the whole batch, whatever
the number of micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multicoca.data.order import keyed_number
from multicoca.data.sample import Batch
from multicoca.distributed.collectives import rank, sum_over_ranks
from multicoca.distributed.parallelize import Engine
from multicoca.model.coca import Outputs
from multicoca.model.losses import contrastive_loss
from multicoca.train.optim import Optimizers


@dataclass(frozen=True)
class LossConfig:
    """The losses and their weights.

    Attributes:
        contrastive_weight: CoCa's is 1.
        captioning_weight: CoCa's is 2.
        contrastive_reduction: "sum" of the two directions as in the paper, or "mean" as in open_clip.
        whole_batch: the micro-batches of a batch are one contrastive batch, at the price of one more forward pass of
            encoder and text-only half; if not, each is a batch of its own.
    """

    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    contrastive_reduction: str = "sum"
    whole_batch: bool = True


@dataclass(frozen=True)
class _Part:
    """A micro-batch with its share of the step."""

    batch: Batch
    weight: float  # of its modality in the step
    of_modality: int  # micro-batches of its modality
    of_batch: int  # micro-batches of its batch
    seed: int

    @property
    def whole(self) -> tuple[str, int]:
        """Which batch it is a part of."""
        return self.batch.modality, self.batch.number


def accumulate_gradients(
    engine: Engine,
    batches: Sequence[Batch],
    config: LossConfig,
    autocast: torch.dtype | None = None,
    key: tuple[int, ...] = (0,),
) -> dict[str, Tensor]:
    """Adds the gradients of a step's batches, over all ranks, to the parameters.

    Modalities count by their numbers of micro-batches; the captioning loss of each is a mean over its tokens in the
    whole step on all ranks. torch's global random numbers are set for each micro-batch, from the key and its place.

    Args:
        engine: the model on its ranks, in training mode.
        batches: this rank's batches, the same modalities in the same order on every rank.
        config: the losses' weights.
        autocast: dtype for autocast, or None for none.
        key: of random numbers such as dropout's; the seed and the step.

    Returns:
        The global losses by TensorBoard tag, without gradients.
    """
    device = next(engine.model.parameters()).device
    names = [batch.modality for batch in batches]
    sizes = Counter((batch.modality, batch.number) for batch in batches)
    parts = []
    for batch, seed in zip(batches, _seeds(key, len(batches)), strict=True):
        count = names.count(batch.modality)
        of_batch = sizes[batch.modality, batch.number]
        parts.append(_Part(batch.to(device), count / len(names), count, of_batch, seed))
    tokens = _captioned_tokens(parts, device)
    cached, logged = {}, {}
    for whole, size in sizes.items():
        if size > 1 and config.whole_batch and config.contrastive_weight:
            own = [part for part in parts if part.whole == whole]
            loss, cached[whole] = _embedding_gradients(engine, own, config, autocast)
            tag = f"loss/contrastive/{whole[0]}"
            logged[tag] = logged.get(tag, 0) + loss * (size / own[0].of_modality)
    for number, part in enumerate(parts):
        modality = part.batch.modality
        with engine.reducing(number == len(parts) - 1):
            outputs = _forward(engine, part, autocast)
            captioning = outputs.caption_loss / tokens[modality]
            if part.whole in cached:
                share = part.of_batch / part.of_modality
                contrastive = share * _carry(outputs, cached[part.whole].pop(0))
            else:
                contrastive = _contrastive(outputs, config) / part.of_modality
                tag = f"loss/contrastive/{modality}"
                logged[tag] = logged.get(tag, 0) + contrastive.detach()
            tag = f"loss/captioning/{modality}"
            logged[tag] = logged.get(tag, 0) + captioning.detach()
            total = config.contrastive_weight * contrastive + config.captioning_weight * captioning
            (total * (part.weight * engine.gradient_factor)).backward()
    return dict(zip(logged, sum_over_ranks(torch.stack(list(logged.values()))).unbind(), strict=True))


def optimizer_step(
    parameters: Sequence[nn.Parameter], optimizers: Optimizers, rates: Sequence[float], clip_norm: float
) -> float:
    """Clips, updates with each optimizer at its learning rate, and clears the gradients.

    Gradients that are not all finite change nothing; all ranks see the same.

    Returns:
        The gradients' norm before clipping.
    """
    limit = clip_norm if clip_norm > 0 else float("inf")
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def _seeds(key: tuple[int, ...], count: int) -> list[int]:
    """Returns a seed for each micro-batch of this rank."""
    return [keyed_number(*key, rank(), number) >> 1 for number in range(count)]


def _captioned_tokens(parts: Sequence[_Part], device: torch.device) -> dict[str, Tensor]:
    """Counts the tokens that are predicted, by modality, in the whole step on all ranks."""
    counts: dict[str, Tensor] = {}
    for part in parts:
        own = (part.batch.lengths - 1).sum()
        counts[part.batch.modality] = counts.get(part.batch.modality, 0) + own
    return dict(zip(counts, sum_over_ranks(torch.stack(list(counts.values())).to(device)).unbind(), strict=True))


def _forward(engine: Engine, part: _Part, autocast: torch.dtype | None) -> Outputs:
    batch = part.batch
    torch.manual_seed(part.seed)
    with _autocast(batch.ids.device, autocast):
        return engine.forward(batch.modality, batch.inputs, batch.ids, batch.lengths)


def _contrastive(outputs: Outputs, config: LossConfig) -> Tensor:
    return contrastive_loss(outputs.source, outputs.text, outputs.logit_scale, config.contrastive_reduction)


def _embedding_gradients(
    engine: Engine, parts: Sequence[_Part], config: LossConfig, autocast: torch.dtype | None
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Runs the first pass; returns (the loss, the gradients by source, text and scale of each micro-batch)."""
    embedded = []
    for part in parts:
        batch = part.batch
        torch.manual_seed(part.seed)
        with torch.no_grad(), _autocast(batch.ids.device, autocast):
            embedded.append(engine.model.embed_pairs(batch.modality, batch.inputs, batch.ids, batch.lengths))
    sources, texts, scales = zip(*embedded, strict=True)
    leaves = [torch.cat(sources), torch.cat(texts), scales[0]]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    loss = contrastive_loss(*leaves, config.contrastive_reduction)
    loss.backward()
    sizes = [len(source) for source in sources]
    source, text, scale = (leaf.grad for leaf in leaves)
    shares = [scale / len(parts)] * len(parts)
    return loss.detach(), list(zip(source.split(sizes), text.split(sizes), shares, strict=True))


def _carry(outputs: Outputs, gradients: tuple[Tensor, ...]) -> Tensor:
    """Returns a number whose gradients by the outputs are the given ones."""
    values = (outputs.source, outputs.text, outputs.logit_scale)
    return sum((value * gradient).sum() for value, gradient in zip(values, gradients, strict=True))


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
