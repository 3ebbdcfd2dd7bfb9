"""Runs that lose a process by SIGKILL, through the real command and torchrun: they go on by themselves, to the bit."""

import os
import re
import signal
import socket
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


def start(folder: Path, ranks: int, *changes: str, agent: tuple[str, ...] = ("--standalone",)) -> subprocess.Popen:
    """Starts a run in `folder` under torchrun, which starts it again when a rank dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "3"]
    command += [*agent, "-m", "multicoca.cli.train", *SETTINGS, f"output={folder}", "name=run", *changes]
    cache = folder.parent / "cache"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MULTICOCA_CACHE": str(cache)}
    if "--standalone" not in agent:
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.Popen(
        command, env=environment, stdout=(folder.parent / "log.txt").open("a"), stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen, folder: Path) -> None:
    try:
        assert process.wait(DEADLINE_S) == 0, (folder.parent / "log.txt").read_text()[-3000:]
    finally:
        process.kill()


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, step: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while not (folder / "run" / "checkpoints" / f"step_{step:08d}").is_dir():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)


def kill_a_rank(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Waits for a checkpoint and kills rank 1."""
    wait_for_checkpoint(process, folder, step)
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


def test_a_run_that_loses_a_machine_goes_on_with_another_one(tmp_path):
    """Two agents of torchrun, as on two machines: one is killed with its rank, and a new one takes its place."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run")
    agent = (*meeting, "--local-addr", "127.0.0.1")
    whole = start(tmp_path / "whole", 2, "train.steps=12")
    finish(whole, tmp_path / "whole")
    agents = [start(tmp_path / "killed", 1, "train.steps=12", agent=agent)]
    until = time.monotonic() + DEADLINE_S
    while not is_listening(port):  # the first agent keeps the place to meet
        assert time.monotonic() < until
        time.sleep(0.1)
    agents.append(start(tmp_path / "killed", 1, "train.steps=12", agent=agent))
    try:
        wait_for_checkpoint(agents[1], tmp_path / "killed", 4)
        for process in [*psutil.Process(agents[1].pid).children(recursive=True), agents[1]]:
            process.kill()
        agents.append(start(tmp_path / "killed", 1, "train.steps=12", agent=agent))
        for process in (agents[0], agents[2]):
            finish(process, tmp_path / "killed")
    finally:
        for process in agents:
            process.terminate()
    assert "resuming at step" in (tmp_path / "log.txt").read_text()
    weights = [load_file(tmp_path / name / "run" / "model" / "model.safetensors") for name in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def is_listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_torchrun_passes_on_the_signals_of_a_queue_and_waits_for_the_checkpoint(tmp_path):
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
    agent = ("--standalone", "--shutdown-timeout", "600", "--signals-to-handle", signals)
    process = start(tmp_path / "run", 2, "train.steps=100000", "train.keep_last=1", agent=agent)
    try:
        wait_for_checkpoint(process, tmp_path / "run", 2)
        process.send_signal(signal.SIGUSR1)
        process.wait(DEADLINE_S)
    finally:
        process.kill()
    said = (tmp_path / "log.txt").read_text()
    assert re.search(r"stopped by signal 10; step \d+ is saved", said), said[-3000:]
