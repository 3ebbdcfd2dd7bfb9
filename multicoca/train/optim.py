"""The optimizers over a checked partition of the parameters, their schedules, and an average of the parameters.

A group holds parameters of one kind and one learning rate: hidden matrices, which Muon may take, other matrices, and
the rest, which does not decay. Rates differ by modality (`lr_scale`) and by layer of an encoder (`layer_decay`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from multicoca.train.adafactor import Adafactor
from multicoca.train.muon import Muon

SCHEDULES = ("cosine", "linear", "constant", "rsqrt")
OPTIMIZERS = ("adamw", "adafactor")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class OptimConfig:
    """An optimizer, optionally Muon for the hidden matrices, and their schedule.

    Attributes:
        name: "adamw", or "adafactor", as CoCa was trained: the mean of updates in bf16, that of squares factored.
        lr: peak learning rate.
        new_lr: peak learning rate of the parameters that the model of `start_from` did not have; None takes `lr`.
        muon_lr: peak learning rate of Muon (arXiv 2502.16982, updates as large as AdamW's at the same rate) for the
            weights of linear layers, all but those that give logits over the vocabulary; None leaves these to
            the other optimizer. Small models learn from half as many samples with it.
        muon_precision: of Muon's iteration: "auto" (bf16 where it is measured to be faster), "fp32" or "bf16".
        beta1: decay of the mean of gradients.
        beta2: decay of AdamW's mean of squared gradients.
        weight_decay: decoupled, for matrices only.
        lr_scale: factor on the rate of a modality's own parameters (encoder and heads), by modality.
        layer_decay: factor on the rate from each block of an encoder to the one before it, from its output down
            (BEiT, arXiv 2106.08254); 1 for none.
        schedule: after the warm-up: "cosine" or "linear" down to the final share, "constant", or "rsqrt", which falls
            with 1 / sqrt(step).
        warmup_share: share of the steps over which the rate rises to its peak (CoCa: 2%).
        final_lr_share: the rate at the end, as a share of the peak.
        clip_norm: gradients are scaled down to this norm; 0 turns it off.
        ema_decay: of a moving average of the parameters, which evaluation and the finished model then use; None for
            no average.
    """

    name: str = "adamw"
    lr: float = 8e-4
    new_lr: float | None = None
    muon_lr: float | None = None
    muon_precision: str = "auto"
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    lr_scale: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warmup_share: float = 0.02
    final_lr_share: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule is '{self.schedule}'; choose one of {', '.join(SCHEDULES)}")
        if self.muon_precision not in PRECISIONS:
            raise ValueError(f"optim.muon_precision is '{self.muon_precision}'; choose one of {', '.join(PRECISIONS)}")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optim.name is '{self.name}'; choose adamw or adafactor, and optim.muon_lr for Muon")
        shares = {"beta1": self.beta1, "beta2": self.beta2, "ema_decay": self.ema_decay or 0.0}
        for key, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"optim.{key} is {value}; expected at least 0 and below 1")
        for key, value in {"warmup_share": self.warmup_share, "final_lr_share": self.final_lr_share}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"optim.{key} is {value}; expected a share from 0 to 1")
        sizes = {"lr": self.lr, "new_lr": self.new_lr or 0.0, "muon_lr": self.muon_lr or 0.0}
        sizes["weight_decay"] = self.weight_decay
        for key, value in {**sizes, "clip_norm": self.clip_norm}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"optim.{key} is {value}; expected a number of at least 0")
        if self.new_lr is not None and self.lr == 0:
            raise ValueError("optim.lr is 0 and optim.new_lr set; for a rate of 0 freeze what is old: train.tuning=new")
        if not 0 < self.layer_decay <= 1 or any(scale < 0 for scale in self.lr_scale.values()):
            raise ValueError(
                f"optim.layer_decay is {self.layer_decay} and optim.lr_scale {dict(self.lr_scale)}; "
                "expected a decay above 0 and at most 1, and factors of at least 0"
            )


Optimizers = Sequence[torch.optim.Optimizer]


def parameter_kinds(module: nn.Module) -> dict[nn.Parameter, str]:
    """Sorts the parameters into "hidden", "matrices" and "rest".

    Hidden are the weights between vectors of features, which Muon may take. Other matrices decay too: convolutions
    and the layers that give logits over the vocabulary. Vectors, embeddings, learned queries and positions do not.
    """
    kinds = dict.fromkeys(module.parameters(), "rest")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not name.endswith("caption_head"):
            kinds[layer.weight] = "hidden"
        elif isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            kinds[layer.weight] = "matrices"
    kinds.update((layer.weight, "rest") for layer in module.modules() if isinstance(layer, nn.Embedding))
    return kinds


def rate_scales(module: nn.Module, config: OptimConfig) -> dict[nn.Parameter, float]:
    """Returns the factor on each parameter's learning rate.

    Raises:
        ValueError: `lr_scale` names a modality that the model has not.
    """
    modalities = list(module.encoders)
    unknown = [name for name in config.lr_scale if name not in modalities]
    if unknown:
        raise ValueError(f"optim.lr_scale names {', '.join(unknown)}; the modalities are {', '.join(modalities)}")
    scales = dict.fromkeys(module.parameters(), 1.0)
    for name in reversed(modalities):  # what two modalities share goes by the first
        scale = config.lr_scale.get(name, 1.0)
        scales.update(dict.fromkeys(module.heads[name].parameters(), scale))
        layers = encoder_layers(module.encoders[name])
        for depth, parameters in enumerate(reversed(layers)):
            scales.update(dict.fromkeys(parameters, scale * config.layer_decay**depth))
    return scales


def encoder_layers(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Sorts an encoder's parameters into what comes before its blocks, each block, and what comes after them."""
    blocks = [list(block.parameters()) for block in encoder.blocks]
    inside = {parameter for block in blocks for parameter in block}
    before: list[nn.Parameter] = []
    after: list[nn.Parameter] = []
    place = before
    for parameter in encoder.parameters():
        if parameter in inside:
            place = after
        else:
            place.append(parameter)
    return [before, *blocks, after]


def parameter_groups(
    module: nn.Module, config: OptimConfig, new: Collection[str] = ()
) -> dict[tuple[str, float, bool], list[nn.Parameter]]:
    """Sorts the trainable parameters by (kind, factor on the rate, whether they are new): each in exactly one group."""
    kinds, scales = parameter_kinds(module), rate_scales(module, config)
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((kinds[parameter], scales[parameter], name in new), []).append(parameter)
    return groups


def build_optimizers(
    module: nn.Module, config: OptimConfig, muon_dtype: torch.dtype = torch.bfloat16, new: Collection[str] = ()
) -> Optimizers:
    """Builds the optimizer and, with `muon_lr`, Muon, which iterates in `muon_dtype`.

    Args:
        module: whose trainable parameters.
        config: kinds and rates.
        muon_dtype: of Muon's iteration.
        new: names of the parameters that learn at `new_lr`, but for those that Muon takes.

    Raises:
        ValueError: there is nothing to train.
    """
    parts: list[dict] = []
    for_muon: list[dict] = []
    for (kind, scale, is_new), parameters in parameter_groups(module, config, new).items():
        takes_muon = kind == "hidden" and config.muon_lr is not None
        if is_new and not takes_muon and config.new_lr is not None:
            scale *= config.new_lr / config.lr
        decay = 0.0 if kind == "rest" else config.weight_decay
        (for_muon if takes_muon else parts).append({"params": parameters, "weight_decay": decay, "lr_scale": scale})
    if not parts and not for_muon:
        raise ValueError("no parameter is left to train; choose another train.tuning")
    optimizers: list[torch.optim.Optimizer] = [_first_optimizer(parts, config)] if parts else []
    if for_muon:
        optimizers.append(Muon(for_muon, config.muon_lr, muon_dtype))
    return optimizers


def _first_optimizer(parts: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    if config.name == "adafactor":
        return Adafactor(parts, lr=config.lr, momentum=config.beta1)
    return torch.optim.AdamW(parts, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rates(step: int, num_steps: int, config: OptimConfig, optimizers: Optimizers) -> list[float]:
    """Returns each optimizer's rate at a step; a pure function of the step."""
    share = scheduled_share(step, num_steps, config)
    return [share * (config.muon_lr if isinstance(optimizer, Muon) else config.lr) for optimizer in optimizers]


def scheduled_share(step: int, num_steps: int, config: OptimConfig) -> float:
    """Returns the rate at a step as a share of its peak: linear warm-up, then the schedule."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    falling = {
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
        "constant": 1.0,
        "rsqrt": math.sqrt(warmup / max(step + 1, warmup)),
    }[config.schedule]
    return config.final_lr_share + (1 - config.final_lr_share) * falling


class Average:
    """An exponential moving average of the trainable parameters (EMA); shards are averaged as shards.

    Args:
        module: whose parameters.
        decay: share of the average that a step keeps; less in the first steps, (1 + step) / (10 + step).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self._module = decay, module
        self._own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().clone() for name, p in self._own.items()}

    @torch.no_grad()
    def update(self, step: int, used: Bool[Tensor, ""] | None = None) -> None:
        """Takes in the parameters after a step, unless it was not used."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        weight = torch.full((), share, device=next(iter(self._values.values())).device)
        weight = weight if used is None else weight * used
        values, own = ([_local(each) for each in kept.values()] for kept in (self._values, self._own))
        torch._foreach_lerp_(values, own, [weight.to(value.dtype) for value in values])

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages by parameter name, as they are, for checkpoints."""
        return dict(self._values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the module's parameters are the averages."""
        kept = {name: parameter.detach().clone() for name, parameter in self._own.items()}
        self._put(self._values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._own.items():
            parameter.copy_(values[name])
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered before is of other values


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def set_tuning(
    module: nn.Module, mode: str, last_blocks: int = 0, new: Collection[str] = (), idle: Collection[str] = ()
) -> None:
    """Chooses what is trained, by one of the modes of VideoCoCa (arXiv 2212.04979, section 3.3) and common others.

    Args:
        module: a CoCa.
        mode: "all"; "poolers" alone; "frozen_encoder", all but the encoders (LiT); "last_blocks", as before and the
            last few blocks of each encoder; "frozen_then_all", the encoders later (see `TrainConfig`); "new", the
            parameters that the model of `start_from` did not have.
        last_blocks: how many, for that mode.
        new: names of those parameters.
        idle: modalities without data: their encoders and heads stay as they are, but for what others use too.

    Raises:
        ValueError: there is no such mode, or nothing to train in it.
    """
    if mode not in TUNING:
        raise ValueError(f"train.tuning is '{mode}'; choose one of {', '.join(TUNING)}")
    if mode == "poolers":
        module.requires_grad_(False)
        module.poolers.requires_grad_(True)
    elif mode in ("frozen_encoder", "last_blocks"):
        module.encoders.requires_grad_(False)
    elif mode == "new":
        if not new:
            raise ValueError("train.tuning is 'new', but nothing of the model is new; add a modality beside start_from")
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in new)
    if mode == "last_blocks":
        for name, encoder in module.encoders.items():
            blocks = list(encoder.blocks)
            if not 0 < last_blocks <= len(blocks):
                raise ValueError(
                    f"train.last_blocks is {last_blocks}; the encoder of '{name}' has {len(blocks)} blocks"
                )
            after = encoder_layers(encoder)[-1]
            for parameter in (*after, *(p for block in blocks[-last_blocks:] for p in block.parameters())):
                parameter.requires_grad_(True)
    active = {p for name in module.encoders if name not in idle for p in _parameters_of(module, name)}
    for name in idle:
        for parameter in _parameters_of(module, name):
            if parameter not in active:
                parameter.requires_grad_(False)


def _parameters_of(module: nn.Module, modality: str) -> list[nn.Parameter]:
    """Returns what only this modality uses, or shares with others by name."""
    return [*module.encoders[modality].parameters(), *module.heads[modality].parameters()]


TUNING: Mapping[str, str] = {
    "all": "every parameter",
    "poolers": "the poolers alone",
    "frozen_encoder": "all but the encoders",
    "last_blocks": "all but the encoders' first blocks",
    "frozen_then_all": "all but the encoders at first, then all",
    "new": "what the model of start_from did not have",
}
