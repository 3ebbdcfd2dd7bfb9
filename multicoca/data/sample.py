"""The records of the data side: an item on disk, a problem with one, and a batch for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """A captioned file.

    Attributes:
        key: its name in ledgers and results, unique within a split and modality.
        file: where it lies.
        modality: who reads it.
        texts: its captions, at least one.
        label: its class, if it has one.
        extra: what else the metadata says, as read.
    """

    key: str
    file: Path
    modality: str
    texts: tuple[str, ...]
    label: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Why an item cannot be used: a line of the ledger."""

    key: str
    file: str
    reason: str
    split: str = ""
    modality: str = ""


@dataclass(frozen=True)
class Batch:
    """Pairs of one modality.

    Attributes:
        modality: whose inputs these are.
        inputs: what its processor collated.
        ids: token ids of the captions, padded.
        lengths: real tokens of each caption.
        keys: the items' keys.
        problems: items that could not be read and were replaced.
    """

    modality: str
    inputs: dict[str, Tensor]
    ids: Tensor
    lengths: Tensor
    keys: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        ids, lengths = self.ids.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True)
        return Batch(self.modality, inputs, ids, lengths, self.keys, self.problems)
