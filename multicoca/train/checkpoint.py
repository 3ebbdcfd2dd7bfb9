"""Checkpoints of a run: parameters, optimizer state and the step number, nothing about data.

Written by `torch.distributed.checkpoint` aside and then renamed, so that a checkpoint is whole or not there;
the newest two are kept.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from multicoca.distributed.collectives import rank, wait_for_all, world_size
from multicoca.train.optim import Optimizers

KEEP = 2


def save_checkpoint(folder: Path, step: int, seconds: float, model: nn.Module, optimizers: Optimizers) -> Path:
    """Writes `folder/step_N` for the state after N steps that took some seconds; all ranks call it together."""
    target, aside = folder / f"step_{step:08d}", folder / f"step_{step:08d}.part"
    if rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()
    parameters, optimizer_state = get_state_dict(model, optimizers)
    progress = torch.tensor([step, seconds], dtype=torch.float64)
    state = {"model": parameters, "optimizer": optimizer_state, "progress": progress}
    dcp.save(state, checkpoint_id=aside, no_dist=world_size() == 1)
    if rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for old in _checkpoints(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    wait_for_all()
    return target


def load_latest(folder: Path, model: nn.Module, optimizers: Optimizers) -> tuple[int, float]:
    """Restores the newest checkpoint; returns (its steps, seconds they took), zeros when there is none."""
    found = _checkpoints(folder)
    if not found:
        return 0, 0.0
    parameters, optimizer_state = get_state_dict(model, optimizers)
    state = {"model": parameters, "optimizer": optimizer_state, "progress": torch.zeros(2, dtype=torch.float64)}
    dcp.load(state, checkpoint_id=found[-1], no_dist=world_size() == 1)
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    step, seconds = state["progress"].tolist()
    return int(step), seconds


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step_\d{8}", path.name))
