"""Checkpoints of a run: parameters, optimizer state, average and the step number, nothing about data.

Written by `torch.distributed.checkpoint` beside training, aside and then renamed, so that a checkpoint is whole or not
there. It can be read on another number of ranks. What every rank has as a whole, rank 0 writes alone.
"""

from __future__ import annotations

import pickle
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from multicoca.distributed.collectives import rank, side_group, wait_for_all, world_size
from multicoca.train.optim import Average, Optimizers
from multicoca.train.restricted import Planner, Reader

_UNREADABLE = (CheckpointException, OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError)
_GRACE_S = 20.0  # for a checkpoint that is being written when the run ends with an error


class Checkpoints:
    """The checkpoints of a run's folder; all ranks make one and call it together.

    Args:
        folder: where they lie, as `step_N` after N steps.
        model: as it is trained, sharded or not.
        optimizers: its optimizers.
        average: of its parameters, if there is one.
        keep_last: how many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too; 0 for none.

    Attributes:
        pause_s: seconds for which saving has held up training, since somebody set it to 0.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Optimizers,
        average: Average | None = None,
        keep_last: int = 2,
        keep_every: int = 0,
    ):
        if keep_last < 1 or keep_every < 0:
            raise ValueError(
                f"train.keep_last is {keep_last} and train.keep_every {keep_every}; expected at least 1 and 0"
            )
        self.folder, self.model, self.optimizers, self.average = folder, model, optimizers, average
        self.keep_last, self.keep_every = keep_last, keep_every
        first = next(model.parameters())
        is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        self._writes = is_sharded or rank() == 0
        self._group = side_group() if is_sharded else None
        self._stager = _pinned_stager() if first.is_cuda and self._writes else None
        self.pause_s = 0.0
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # said of every run in one process
        self._pending: tuple[Future, Path] | None = None
        if rank() == 0:
            for left in folder.glob("step_*.part"):
                shutil.rmtree(left, ignore_errors=True)
        wait_for_all()

    def save(self, step: int, seconds: float) -> None:
        """Starts to write the state after `step` steps that took some seconds; training may go on at once.

        Raises:
            ValueError: this or the one before cannot be written.
        """
        if not self._writes:
            return
        started = time.perf_counter()
        self.finish()
        aside = self.folder / f"step_{step:08d}.part"
        if rank() == 0:
            self._shielded(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        if self._group is not None:
            wait_for_all()
        state = self._state()
        state["progress"] = torch.tensor([step, seconds], dtype=torch.float64)
        arguments = {"no_dist": True} if self._group is None else {"process_group": self._group}
        arguments |= {} if self._stager is None else {"async_stager": self._stager}
        self._pending = self._shielded(lambda: dcp.async_save(state, checkpoint_id=aside, **arguments)), aside
        self.pause_s += time.perf_counter() - started

    def settle(self) -> None:
        """Names a checkpoint that has been written by now; costs nothing otherwise."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Waits until the checkpoint that is being written is whole, if there is one.

        Raises:
            ValueError: it cannot be written; those before it are as they were.
        """
        if self._pending is None:
            return
        (future, aside), self._pending = self._pending, None
        self._shielded(future.result)
        if rank() == 0:  # its future ends with the metadata, when all ranks have written their parts
            target = aside.with_suffix("")
            shutil.rmtree(target, ignore_errors=True)
            self._shielded(lambda: aside.rename(target))
            kept = whole_checkpoints(self.folder)
            for old in kept[: -self.keep_last]:
                if not self.keep_every or step_of(old) % self.keep_every:
                    shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Context behind which a checkpoint that was being written is whole, after an error too if it takes no longer
        than a moment."""
        try:
            yield
        except BaseException:
            if self._pending is not None:
                with suppress(Exception):
                    self._pending[0].result(timeout=_GRACE_S)
                    self.finish()
            raise
        self.finish()

    def load_latest(self) -> tuple[int, float, list[str]]:
        """Restores the newest checkpoint that can be read.

        Returns:
            (its steps, the seconds they took, what to tell about newer ones that are torn); zeros when there is none.

        Raises:
            ValueError: there are some and none can be read, or they are of another model; the message says why.
        """
        torn: dict[Path, str] = {}
        for path in reversed(whole_checkpoints(self.folder)):
            try:
                saved = Reader(path).read_metadata().state_dict_metadata
                self._check_shapes(path, saved)
                step, seconds = self._load(path, set(saved))
            except _UNREADABLE as error:
                if not _is_torn(error):
                    raise ValueError(f"the checkpoint {path} cannot be read: {_last_line(error)}") from error
                torn[path] = f"the checkpoint {path} is torn and left out ({_last_line(error)})"
                continue
            wait_for_all()
            if rank() == 0:  # it must not count among those that are kept
                for other in torn:
                    shutil.rmtree(other.with_suffix(".torn"), ignore_errors=True)
                    other.rename(other.with_suffix(".torn"))
            return step, seconds, list(torn.values())
        if torn:
            raise ValueError(
                "no checkpoint of this run can be read; give it another name (name=...), or delete it with fresh=true: "
                + "; ".join(torn.values())
            )
        return 0, 0.0, []

    def _state(self) -> dict[str, Any]:
        parameters, optimizer = get_state_dict(self.model, self.optimizers)
        state = {"model": parameters, "optimizer": optimizer}
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def _load(self, path: Path, saved: set[str]) -> tuple[int, float]:
        state = {**self._state(), "progress": torch.zeros(2, dtype=torch.float64)}
        names = list(state["optimizer"]["state"])
        unsaved = [name for name in names if not any(key.startswith(f"optimizer.state.{name}.") for key in saved)]
        for name in unsaved:  # an optimizer has no state for what has had no gradient yet
            del state["optimizer"]["state"][name]
        dcp.load(state, storage_reader=Reader(path), planner=Planner(), no_dist=world_size() == 1)
        options = StateDictOptions(strict=False)  # that nothing else is missing, `_check_shapes` has seen
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        step, seconds = state["progress"].tolist()
        return int(step), seconds

    def _check_shapes(self, path: Path, saved: dict[str, Any]) -> None:
        own = {f"model.{name}": tuple(value.shape) for name, value in self.model.state_dict().items()}
        found = {name: tuple(entry.size) for name, entry in saved.items() if name.startswith("model.")}
        wrong = [
            f"{name.removeprefix('model.')}: {found.get(name, 'absent')} there, {own.get(name, 'absent')} here"
            for name in sorted(own.keys() | found.keys())
            if own.get(name) != found.get(name)
        ]
        if wrong:
            raise ValueError(
                f"{path} is of another model; {len(wrong)} parameters differ, among them {'; '.join(wrong[:3])}. "
                "Give this run another name (name=...), or delete the earlier one with fresh=true."
            )

    def _shielded(self, action: Any) -> Any:
        """Turns what goes wrong while writing into an error that says what is left."""
        try:
            return action()
        except (OSError, CheckpointException, RuntimeError) as error:
            kept = whole_checkpoints(self.folder)
            free = shutil.disk_usage(self.folder if self.folder.is_dir() else self.folder.anchor or ".").free
            raise ValueError(
                f"a checkpoint cannot be written to {self.folder} ({free / 2**20:,.0f} MiB free): {_last_line(error)}. "
                f"{f'The newest whole one is {kept[-1].name}' if kept else 'There is none before it'}; "
                "make room or mend the permissions, and the same command goes on"
            ) from error


def _pinned_stager() -> DefaultStager:
    """Returns what copies a state to the CPU: into pinned memory, which is kept for the next time."""
    return DefaultStager(StagingOptions(use_shared_memory=False, use_async_staging=False))


def _is_torn(error: BaseException) -> bool:
    """Whether an error tells of a broken checkpoint, and not of a disk, memory or permissions."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    return not any(
        isinstance(cause, torch.OutOfMemoryError)
        or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError))
        for cause in causes
    )


def _last_line(error: BaseException) -> str:
    """Returns the reason that stands at the end of errors that quote the traces of all ranks."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def whole_checkpoints(folder: Path) -> list[Path]:
    """Returns the whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step_\d{8}", path.name))


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def newest_step(folder: Path) -> int | None:
    """Returns the step of the newest whole checkpoint, None where there is none."""
    kept = whole_checkpoints(folder)
    return step_of(kept[-1]) if kept else None
