"""Runs that lose a process by SIGKILL, through the real command and torchrun: they go on by themselves, to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from patience import DEADLINE_S
from safetensors.torch import load_file

SETTINGS = [
    "modality=[image]", "train.precision=fp32", "train.checkpoint_every=2", "train.log_every=2", "data.batch_size=8",
    "data.source.train_items=32", "data.source.test_items=8", "data.source.composition_items=2",
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "evaluation.gallery=4", "evaluation.draws=1",
    "train.keep_last=1000", "optim.ema_decay=0.9",
]  # fmt: skip


def start(folder: Path, ranks: int, *changes: str) -> subprocess.Popen:
    """Starts a run in `folder` under torchrun, which starts it again when a rank dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "3"]
    command += ["--standalone"]
    command += ["-m", "multicoca.cli.train", *SETTINGS, f"output={folder}", "name=run", *changes]
    cache = folder.parent / "cache"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MULTICOCA_CACHE": str(cache)}
    return subprocess.Popen(
        command, env=environment, stdout=(folder.parent / "log.txt").open("a"), stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen, folder: Path) -> None:
    try:
        assert process.wait(DEADLINE_S) == 0, (folder.parent / "log.txt").read_text()[-3000:]
    finally:
        process.kill()


def kill_a_rank(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Waits for a checkpoint and kills rank 1."""
    until = time.monotonic() + DEADLINE_S
    while not (folder / "run" / "checkpoints" / f"step_{step:08d}").is_dir():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == "1":
            os.kill(child.pid, signal.SIGKILL)
            return
    raise AssertionError("there is no rank 1")


@pytest.mark.parametrize("parallel", ["fsdp"])
def test_a_run_that_loses_a_rank_ends_as_the_run_that_did_not(tmp_path, parallel):
    changes = ("train.steps=12", f"parallel={parallel}")
    for name in ("whole", "killed"):
        process = start(tmp_path / name, 2, *changes)
        if name == "killed":
            kill_a_rank(process, tmp_path / name, 4)
        finish(process, tmp_path / name)
    whole, killed = (load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name
    assert "resuming at step" in (tmp_path / "log.txt").read_text()
