"""The whole configuration of a run, as frozen dataclasses; YAML only selects and composes.

Every default stands once, in a dataclass. `register` hands the schema to Hydra, so that an unknown key or a
wrong type is an error at once; `from_hydra` gives back plain dataclasses, and nothing below the command line
sees Hydra. In the schema the sizes of the model are None until somebody sets them: what is not set comes from the
model that training starts from, or else from the dataclass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multicoca.data.mixture import MixtureConfig
from multicoca.distributed.parallelize import ParallelConfig
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.isolated import DEFAULT_TIMEOUT_S
from multicoca.model.config import ModelConfig
from multicoca.model.spec import ModelSpec
from multicoca.text.tokenizer import TextConfig
from multicoca.train.loop import TrainConfig
from multicoca.train.optim import OptimConfig
from multicoca.train.step import LossConfig


@dataclass(frozen=True)
class DataConfig(MixtureConfig):
    """Where the data is and how it is read; what a step holds is said by `MixtureConfig`.

    Attributes:
        source: `_target_` and arguments of the source.
        root: what the source reads: a folder, a manifest, shards or a list of them.
        batch_size: pairs of a batch, over all processes.
        workers: processes that read data, for each rank; None takes one per spare core.
        max_broken_share: training stops when a larger share of a modality's items cannot be used.
        decode_timeout_s: how long a decoder that runs in a process of its own may take for a file, and a second more
            for each MiB; then the file cannot be used.
    """

    source: dict[str, Any] = field(default_factory=dict)
    root: Any = None
    batch_size: int = 64
    workers: int | None = None
    max_broken_share: float = 0.05
    decode_timeout_s: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decode_timeout_s > 0:
            raise ValueError(f"data.decode_timeout_s is {self.decode_timeout_s}; expected a number of seconds above 0")
        sizes = {"batch_size": self.batch_size} | {f"batch_sizes.{name}": n for name, n in self.batch_sizes.items()}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"data.{name} is {size}; expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers is {self.workers}; expected at least 0")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share is {self.max_broken_share}; expected a share from 0 to 1")

    def common_size(self) -> int:
        """Returns what the number of processes must divide: the common part of all micro-batches' sizes."""
        return max(1, math.gcd(self.batch_size, *self.batch_sizes.values()) // max(1, self.micro_batches))


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        name: of the run; its folder is `output`/`name`.
        output: folder of all runs.
        seed: of data order, initialisation and evaluation draws.
        start_from: a model folder, or owner/name of the hub, whose weights, sizes, tokenizer and modalities training
            starts with. What `model` and `modalities` set goes over what it has; weights that then have no place are
            an error.
        fresh: start anew where an earlier run of this name stands, which is deleted.
        accept_changes: go on with an earlier run of this name although its configuration was another one.
        model: the core's sizes.
        modalities: `processor` and `encoder` of each modality, by name.
        text: the tokenizer.
        data: the source and the batch.
        optim: optimizer and schedule.
        loss: the losses' weights.
        train: length and intervals.
        parallel: how ranks share the model.
        evaluation: protocols.
    """

    name: str = "run"
    output: str = "runs"
    seed: int = 0
    start_from: str | None = None
    fresh: bool = False
    accept_changes: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    modalities: dict[str, Any] = field(default_factory=dict)
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def limited_to(self, names: Collection[str]) -> Config:
        """Returns the configuration with these modalities alone: the others' settings are left out, too."""

        def kept(by_name: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in by_name.items() if name in names}

        data = replace(self.data, weights=kept(self.data.weights), batch_sizes=kept(self.data.batch_sizes))
        optim = replace(self.optim, lr_scale=kept(self.optim.lr_scale))
        return replace(self, modalities=kept(self.modalities), data=data, optim=optim)

    @property
    def spec(self) -> ModelSpec:
        """What the model is made of."""
        return ModelSpec(self.model, self.modalities, self.text, self.seed)


_FROM_THE_MODEL = ("model", "text")  # parts whose values are None until somebody sets them


def register() -> None:
    """Makes the schema known to Hydra under the name `multicoca_schema`."""
    node = _writable(OmegaConf.structured(_with_nothing_set()))
    # their keys are names, which may be added without a plus
    for names in (
        node.data.weights,
        node.data.batch_sizes,
        node.optim.lr_scale,
        node.modalities,
        node.evaluation.templates,
    ):
        OmegaConf.set_struct(names, False)
    ConfigStore.instance().store(name="multicoca_schema", node=node)


def from_hydra(composed: DictConfig, before: ModelSpec | None = None) -> Config:
    """Turns what Hydra composed into the dataclasses.

    Args:
        composed: by the schema that `register` stored.
        before: the model that training starts from. What is set goes over what it has.

    Raises:
        ValueError: a value is out of its range, or sets a tokenizer although `before` has one.
    """
    values = vars(OmegaConf.to_object(composed))
    model, text = (_set_values(values.pop(name)) for name in _FROM_THE_MODEL)
    if before is None:
        return Config(**values, model=ModelConfig(**model), text=TextConfig(**text))
    others = {key: value for key, value in text.items() if value != getattr(before.text, key)}
    if others:
        named = ", ".join(f"text.{key}={value}" for key, value in others.items())
        raise ValueError(f"start_from brings the tokenizer of its model; remove {named}")
    values["modalities"] = _merged(before.modalities, values["modalities"])
    return Config(**values, model=replace(before.model, **model), text=before.text)


def sets_sizes(composed: DictConfig) -> bool:
    """Whether anything says how large the model is to be."""
    return any(value is not None for value in composed.model.values())


def _with_nothing_set() -> type:
    """Returns `Config` with parts in which every value may be None and is."""
    hints = get_type_hints(Config)
    parts = {name: _optional(hints[name]) for name in _FROM_THE_MODEL}
    return make_dataclass(
        "Config",
        [
            (each.name, parts[each.name], field(default_factory=parts[each.name]))
            if each.name in parts
            else (each.name, hints[each.name], _same_default(each))
            for each in fields(Config)
        ],
    )


def _optional(part: type) -> type:
    hints = get_type_hints(part)
    return make_dataclass(part.__name__, [(each.name, hints[each.name] | None, None) for each in fields(part)])


def _same_default(each: Field) -> Any:
    return field(default=each.default, default_factory=each.default_factory)


def _set_values(part: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(part).items() if value is not None}


def _merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `before` with what `now` sets, key by key; what has another `_target_` is replaced as a whole."""
    both = dict(before)
    for key, value in now.items():
        old = both.get(key)
        same_kind = isinstance(old, Mapping) and isinstance(value, Mapping)
        same_kind = same_kind and value.get("_target_", old.get("_target_")) == old.get("_target_")
        both[key] = _merged(old, value) if same_kind else value
    return both


def to_yaml(config: Config) -> str:
    """Returns the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str) -> Config:
    """Reads what `to_yaml` wrote.

    Raises:
        ValueError: a key is unknown or a value has the wrong type.
    """
    schema = _writable(OmegaConf.structured(Config))
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(text)))
    except OmegaConfBaseException as error:
        raise ValueError(f"this is not the configuration of a model of this version: {error}") from error


def _writable(node: DictConfig) -> DictConfig:
    """Lifts the write protection that OmegaConf gives to frozen dataclasses, so that YAML can fill them."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _writable(child)
    return node
