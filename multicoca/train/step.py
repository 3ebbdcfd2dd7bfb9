"""One optimizer step: micro-batches of every modality, gradients summed over them and over ranks.

The micro-batches of a batch are one batch for the contrastive loss: a first pass gives the embeddings of all,
the loss gives the embeddings' gradients, and a second pass over each micro-batch, with the same random numbers, brings
them to the parameters (GradCache, Gao et al., arXiv 2101.06983). So gradients are those of the whole batch, whatever
the number of micro-batches and ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from multicoca.data.order import keyed_number
from multicoca.data.sample import Batch
from multicoca.distributed.collectives import rank, sum_over_ranks
from multicoca.distributed.parallelize import Engine
from multicoca.modality import Processor, finished
from multicoca.model.coca import Outputs, predicted_rows
from multicoca.model.losses import contrastive_loss, sigmoid_loss
from multicoca.train.optim import Optimizers


@dataclass(frozen=True)
class LossConfig:
    """The losses and their weights; what has a weight of 0 is not computed.

    Whether the contrastive loss is softmax or sigmoid is said by `model.contrastive`.

    Attributes:
        contrastive_weight: CoCa's is 1.
        captioning_weight: CoCa's is 2.
        contrastive_reduction: of softmax: "sum" of the two directions as in the paper, or "mean" as in open_clip.
        label_smoothing: share of each next token's probability that is spread over the vocabulary.
        z_loss: factor of the squared logarithm of the softmax's denominator, which is added to the captioning loss.
        whole_batch: the micro-batches of a batch are one contrastive batch, at the price of one more forward pass of
            encoder and text-only half; if not, each is a batch of its own.
    """

    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    contrastive_reduction: str = "sum"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    whole_batch: bool = True

    def __post_init__(self) -> None:
        weights = (self.contrastive_weight, self.captioning_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"loss.contrastive_weight is {weights[0]} and loss.captioning_weight {weights[1]}; expected none below "
                "0 and one above 0"
            )
        if self.contrastive_reduction not in ("sum", "mean"):
            raise ValueError(f"loss.contrastive_reduction is '{self.contrastive_reduction}'; choose 'sum' or 'mean'")
        if not 0 <= self.label_smoothing < 1 or self.z_loss < 0:
            raise ValueError(
                f"loss.label_smoothing is {self.label_smoothing} and loss.z_loss {self.z_loss}; expected at least 0, "
                "and a smoothing below 1"
            )


@dataclass(frozen=True)
class _Part:
    """A micro-batch on the device, or on its way there, with its share of the step."""

    batch: Batch
    predicted: tuple[Tensor, Tensor] | None
    there: torch.cuda.Event | None  # behind which the copy is done
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
    processors: Mapping[str, Processor] | None = None,
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
        processors: who finishes the inputs, on the device; without them the inputs are finished.

    Returns:
        The global losses and the share of next tokens that are right, by TensorBoard tag, without gradients.
    """
    device = next(engine.model.parameters()).device
    names = [batch.modality for batch in batches]
    sizes = Counter((batch.modality, batch.number) for batch in batches)
    tokens = _captioned_tokens(batches, device)
    parts = []
    for batch, seed in zip(batches, _seeds(key, len(batches)), strict=True):
        count = names.count(batch.modality)
        of_batch = sizes[batch.modality, batch.number]
        copied = _copied(batch, device, config.captioning_weight > 0)
        parts.append(_Part(*copied, count / len(names), count, of_batch, seed))
    forward = partial(_forward, engine, config, autocast, processors or {})
    cached: dict[tuple[str, int], list[tuple[Tensor, ...]]] = {}
    logged: dict[str, Tensor] = {}

    def log(tag: str, value: Tensor) -> None:
        logged[tag] = logged.get(tag, 0) + value.detach()

    for whole, size in sizes.items():
        if size > 1 and config.whole_batch and config.contrastive_weight:
            own = [part for part in parts if part.whole == whole]
            loss, cached[whole] = _embedding_gradients(own, config, forward)
            log(f"loss/contrastive/{whole[0]}", loss * (size / own[0].of_modality))
    for number, part in enumerate(parts):
        modality = part.batch.modality
        with engine.reducing(number == len(parts) - 1):
            outputs = forward(part)
            total = 0
            if part.whole in cached:
                contrastive = _carry(outputs, cached[part.whole].pop(0)) * (part.of_batch / part.of_modality)
                total = config.contrastive_weight * contrastive
            elif config.contrastive_weight:
                contrastive = _contrastive(outputs, config) / part.of_modality
                log(f"loss/contrastive/{modality}", contrastive)
                total = config.contrastive_weight * contrastive
            if config.captioning_weight:
                captioning = outputs.caption_loss / tokens[modality]
                log(f"loss/captioning/{modality}", captioning)
                log(f"token_accuracy/{modality}", outputs.right_tokens.to(captioning) / tokens[modality])
                total = total + config.captioning_weight * captioning
            (total * (part.weight * engine.gradient_factor)).backward()
    return dict(zip(logged, sum_over_ranks(torch.stack(list(logged.values()))).unbind(), strict=True))


def optimizer_step(
    parameters: Sequence[nn.Parameter],
    optimizers: Optimizers,
    rates: Sequence[float],
    clip_norm: float,
    usable: Bool[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, ""]]:
    """Clips, updates with each optimizer at its learning rate, and clears the gradients; a GPU is not waited for.

    Gradients that are not all finite, or not usable for another reason, change nothing; all ranks see the same. The
    optimizers read that where the parameters are, in `found_inf`, as torch's gradient scaler has it.

    Returns:
        (the gradients' norm before clipping, whether they were used).
    """
    limit = clip_norm if clip_norm > 0 else float("inf")
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    used = norm.isfinite() if usable is None else norm.isfinite() & usable
    left_out = (~used).float()
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        optimizer.found_inf = left_out
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm, used


def _seeds(key: tuple[int, ...], count: int) -> list[int]:
    """Returns a seed for each micro-batch of this rank."""
    return [keyed_number(*key, rank(), number) >> 1 for number in range(count)]


def _captioned_tokens(batches: Sequence[Batch], device: torch.device) -> dict[str, Tensor]:
    """Counts the tokens that are predicted, by modality, in the whole step on all ranks."""
    counts: Counter[str] = Counter()
    for batch in batches:
        counts[batch.modality] += int((batch.lengths - 1).sum())
    own = torch.stack([torch.full((), count, device=device) for count in counts.values()])
    return dict(zip(counts, sum_over_ranks(own).unbind(), strict=True))


def _copied(
    batch: Batch, device: torch.device, captions: bool
) -> tuple[Batch, tuple[Tensor, Tensor] | None, torch.cuda.Event | None]:
    """Starts to copy a batch with what `predicted_rows` gives, beside what the device computes; see `_Part`."""
    predicted = predicted_rows(batch.ids, batch.lengths) if captions else None
    if device.type != "cuda":
        return batch.to(device), predicted, None
    with torch.cuda.stream(_copy_stream(device)):
        if predicted is not None:
            predicted = tuple(
                value if value.is_cuda else value.pin_memory().to(device, non_blocking=True) for value in predicted
            )
        batch = batch.to(device)
        there = torch.cuda.Event()
        there.record()
    return batch, predicted, there


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _wait_on_device(part: _Part) -> None:
    """Lets what is computed from here on wait for the copy of a micro-batch; the CPU does not wait."""
    if part.there is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(part.there)
        for value in (*part.batch.inputs.values(), part.batch.ids, part.batch.lengths, *(part.predicted or ())):
            value.record_stream(stream)  # it was allocated for the other one


def _forward(
    engine: Engine,
    config: LossConfig,
    autocast: torch.dtype | None,
    processors: Mapping[str, Processor],
    part: _Part,
    embeddings_alone: bool = False,
) -> Outputs:
    _wait_on_device(part)
    batch, modality = part.batch, part.batch.modality
    inputs = finished(processors.get(modality), batch.inputs)
    torch.manual_seed(part.seed)
    with _autocast(batch.ids.device, autocast):
        if embeddings_alone:
            return engine.model.embed_pairs(modality, inputs, batch.ids, batch.lengths)
        return engine.forward(
            modality,
            inputs,
            batch.ids,
            batch.lengths,
            contrastive=config.contrastive_weight > 0,
            captions=config.captioning_weight > 0,
            label_smoothing=config.label_smoothing,
            z_loss=config.z_loss,
            predicted=part.predicted,
        )


def _contrastive(outputs: Outputs, config: LossConfig) -> Tensor:
    if outputs.logit_bias is not None:
        return sigmoid_loss(outputs.source, outputs.text, outputs.logit_scale, outputs.logit_bias)
    return contrastive_loss(outputs.source, outputs.text, outputs.logit_scale, config.contrastive_reduction)


def _embedding_gradients(
    parts: Sequence[_Part], config: LossConfig, forward: Callable[..., Outputs]
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Runs the first pass; returns (the loss, its gradients by what `_learned` gives of each micro-batch)."""
    with torch.no_grad():
        embedded = [forward(part, embeddings_alone=True) for part in parts]
    sources, texts = (torch.cat([getattr(own, name) for own in embedded]) for name in ("source", "text"))
    whole = Outputs(sources, texts, embedded[0].logit_scale, embedded[0].logit_bias)
    leaves = [value.detach().requires_grad_() for value in _learned(whole)]
    loss = _contrastive(Outputs(*leaves, *[None] * (4 - len(leaves))), config)
    loss.backward()
    sizes = [len(own.source) for own in embedded]
    source, text, *scalars = (leaf.grad for leaf in leaves)
    shares = [[scalar / len(parts) for scalar in scalars]] * len(parts)
    rows = zip(source.split(sizes), text.split(sizes), shares, strict=True)
    return loss.detach(), [(of_source, of_text, *own) for of_source, of_text, own in rows]


def _carry(outputs: Outputs, gradients: tuple[Tensor, ...]) -> Tensor:
    """Returns a number whose gradients by the outputs are the given ones."""
    return sum((value * gradient).sum() for value, gradient in zip(_learned(outputs), gradients, strict=True))


def _learned(outputs: Outputs) -> list[Tensor]:
    """Returns what the contrastive loss has gradients by."""
    values = [outputs.source, outputs.text, outputs.logit_scale, outputs.logit_bias]
    return [value for value in values if value is not None]


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
