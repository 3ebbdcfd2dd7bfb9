"""The whole configuration of a run, as frozen dataclasses; YAML only selects and composes.

Every default stands once, in a dataclass. `register` hands the schema to Hydra, so that an unknown key or a
wrong type is an error at once; `from_hydra` gives back plain dataclasses, and nothing below the command line
sees Hydra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multicoca.data.mixture import MixtureConfig
from multicoca.distributed.parallelize import ParallelConfig
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.isolated import DEFAULT_TIMEOUT_S
from multicoca.model.config import ModelConfig
from multicoca.text.clean import CLEANERS
from multicoca.train.loop import TrainConfig
from multicoca.train.optim import OptimConfig
from multicoca.train.step import LossConfig


@dataclass(frozen=True)
class TextConfig:
    """The tokenizer.

    Attributes:
        tokenizer: a tokenizer.json that puts a token before and one behind each text; None learns one from the
            training captions.
        vocab_size: of a learned one, at the most.
        clean: what is done to texts first: "none", or "clip" as for CLIP's tokenizer.
    """

    tokenizer: str | None = None
    vocab_size: int = 16384
    clean: str = "none"

    def __post_init__(self) -> None:
        if self.clean not in CLEANERS:
            raise ValueError(f"text.clean is '{self.clean}'; choose one of {', '.join(CLEANERS)}")
        if self.vocab_size < 260:  # the bytes, and four special tokens
            raise ValueError(f"text.vocab_size is {self.vocab_size}; expected at least 260, the bytes and a few marks")


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
            starts with; `modalities` then adds those that it lacks.
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


def register() -> None:
    """Makes the schema known to Hydra under the name `multicoca_schema`."""
    node = _writable(OmegaConf.structured(Config))
    # their keys are names, which may be added without a plus
    for names in (node.data.weights, node.data.batch_sizes, node.optim.lr_scale):
        OmegaConf.set_struct(names, False)
    ConfigStore.instance().store(name="multicoca_schema", node=node)


def from_hydra(composed: DictConfig) -> Config:
    """Turns what Hydra composed into the dataclasses."""
    return OmegaConf.to_object(composed)


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
