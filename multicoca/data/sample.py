"""The records of the data side: an item in storage, a problem with one, and a batch for the model.

An item names its file or its place in a tar and is cheap to make; what it holds is read when somebody decodes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multicoca.data.annotations import printable
from multicoca.data.storage import Member
from multicoca.modality import Processor, UnreadableFileError
from multicoca.reading import refuse_broken


@dataclass(frozen=True)
class Item:
    """A file and what is known about it.

    Attributes:
        key: its name in ledgers and results, unique within a split and modality.
        file: where it lies, a file of its own or a place in a tar.
        modality: who reads it.
        texts: its captions, none or many.
        label: its class, if it has one.
        extra: what else the metadata says, as read.
    """

    key: str
    file: Path | Member
    modality: str
    texts: tuple[str, ...]
    label: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> Path | bytes:
        """Returns what a processor's `decode` takes: the path of a file, the bytes of a place in a tar.

        Raises:
            UnreadableFileError: the tar cannot be read.
        """
        if isinstance(self.file, Path):
            return self.file
        try:
            return self.file.read()
        except OSError as error:
            raise UnreadableFileError(f"its shard cannot be read: {error}") from error

    def decode(self, processor: Processor) -> Any:
        """Reads the item.

        Raises:
            UnreadableFileError: it cannot be used; the message is the reason.
        """
        with refuse_broken():
            return processor.decode(self.content(), self.file.suffix.lower())

    def sample(self, processor: Processor, train: bool, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Reads the item and makes a sample of it; `generator` is needed in training.

        Raises:
            UnreadableFileError: it cannot be used, or its sample holds a NaN or infinite number; the message is the
                reason.
        """
        return sample_of(self.decode(processor), processor, train, generator)


def sample_of(
    raw: Any, processor: Processor, train: bool, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Makes a sample of what `Item.decode` returned; raises as `Item.sample`."""
    with refuse_broken():
        sample = processor.preprocess(raw, train, generator or torch.Generator())
        for name, part in sample.items():
            if part.is_floating_point() and not part.isfinite().all():
                count = int((~part.isfinite()).sum())
                raise UnreadableFileError(f"{count} of the {part.numel()} numbers of its '{name}' are NaN or infinite")
    return sample


@dataclass(frozen=True)
class Problem:
    """Why an item cannot be used: a line of the ledger. All of it can be printed, whatever a file is called."""

    key: str
    file: str
    reason: str
    split: str = ""
    modality: str = ""

    def __post_init__(self) -> None:
        for name in ("key", "file", "reason", "split", "modality"):
            object.__setattr__(self, name, printable(getattr(self, name)))


class UnfilledBatchError(ValueError):
    """Too few items are readable to fill a batch.

    Attributes:
        problems: with these items.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        super().__init__(message)
        self.problems = tuple(problems)


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
        number: which batch of its step it is; micro-batches of one batch have the same number.
    """

    modality: str
    inputs: dict[str, Tensor]
    ids: Tensor
    lengths: Tensor
    keys: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    number: int = 0

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device; from pinned memory the copy runs beside what follows."""
        return self._with(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch in memory from which a GPU copies by itself; torch's data loader calls it."""
        return self._with(Tensor.pin_memory)

    def first(self, count: int) -> Batch:
        """Returns the first pairs; the whole batch where not every input has an axis of the batch in front."""
        if any(value.ndim == 0 or len(value) != len(self.ids) for value in self.inputs.values()):
            return self
        return replace(self._with(lambda value: value[:count]), keys=self.keys[:count])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(value) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, ids=change(self.ids), lengths=change(self.lengths))
