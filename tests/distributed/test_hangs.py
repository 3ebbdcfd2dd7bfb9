"""A rank that hangs ends the others with an error that names it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from patience import DEADLINE_S
from ranks import TESTS, run_ranks

from multicoca.distributed.launch import usable_cores
from multicoca.distributed.setup import distributed, training_device

WORKER = Path(__file__).with_name("hang_worker.py")


@pytest.mark.parametrize("where", ["collective", "heartbeat"])
def test_a_rank_that_hangs_is_named_by_the_one_that_waits(where, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join((str(TESTS.parent), shared.get("PYTHONPATH", "")))
    command = [sys.executable, str(WORKER), str(tmp_path / "met"), where]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = ranks[0].communicate(timeout=DEADLINE_S)[1]
        assert (tmp_path / "met").is_file(), errors
        assert ranks[0].returncode not in (0, None)
        assert "rank 0 of 2 waited in vain" in errors, errors
        assert "Ranks 1 failed to pass monitoredBarrier" in errors, errors
        if where == "heartbeat":  # earlier than a collective on a GPU gives up
            assert "15000ms" in errors, errors
        assert ranks[1].poll() is None  # it still hangs
    finally:
        for process in ranks:
            process.kill()
            process.wait()
            process.stderr.close()


def test_ranks_wait_for_the_first_one_however_long_it_takes():
    run_ranks(Path(__file__).with_name("patience_worker.py"), 2)


def test_ranks_exchange_what_they_have_and_the_signals_that_they_got():
    run_ranks(Path(__file__).with_name("heartbeat_worker.py"), 2)


def test_an_error_of_a_rank_does_not_wait_for_the_others(monkeypatch):
    left = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    with pytest.raises(ValueError, match="broken"), distributed(torch.device("cpu")):
        raise ValueError("broken")
    assert not left
    with distributed(torch.device("cpu")):
        pass
    assert left


def test_a_rank_that_fails_ends_at_once_though_threads_of_it_wait(tmp_path):
    run_ranks(Path(__file__).with_name("end_worker.py"), 2, statuses=[1, 1])


def test_ranks_share_cores_only_with_those_that_may_use_the_same():
    if len(usable_cores()) < 2:
        pytest.skip("it needs two cores")
    run_ranks(Path(__file__).with_name("cores_worker.py"), 2)


def test_agents_that_count_restarts_differently_are_refused(monkeypatch):
    started = {"RANK": 0, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2, "TORCHELASTIC_MAX_RESTARTS": 3}
    for name, value in {**started, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, str(value))
    with (
        pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of torchrun"),
        distributed(torch.device("cpu")),
    ):
        pass


@pytest.mark.parametrize(("launcher", "device"), [("slurm", 0), ("torchrun", None)])
def test_a_task_that_sees_one_gpu_takes_it(monkeypatch, launcher, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launcher == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(ValueError, match="process 4 of this machine, which has 1 GPUs"):
            training_device()
    else:
        assert training_device() == torch.device("cuda", device)
