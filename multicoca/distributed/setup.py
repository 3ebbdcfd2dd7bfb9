"""Processes and devices: torchrun's environment decides, one process is the plain case."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from multicoca.distributed.collectives import gather_objects, side_group, world_size
from multicoca.distributed.launch import usable_cores

_ANSWER_S = 10.0  # within which a rank that lives answers
_LOST = ("Timed out", "timed out", "Connection closed", "Connection reset")  # how gloo's errors tell of a lost rank


def training_device() -> torch.device:
    """Returns this process's GPU, or the CPU where there is none.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    if torch.cuda.is_available():
        own, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if count == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            own = 0  # Slurm's --gpus-per-task: each process sees its own GPU; those of torchrun see the same ones
        if own >= count:
            raise ValueError(
                f"this is process {own + 1} of this machine, which has {count} GPUs; set torchrun's --nproc-per-node, "
                f"or the launcher's tasks per node, to {count}"
            )
        return torch.device("cuda", own)
    return torch.device("cpu")


@contextmanager
def distributed(device: torch.device, timeout_s: float = 600.0) -> Iterator[None]:
    """Joins the process group that torchrun describes, if any, and leaves it at the end.

    After an error it does not leave: NCCL would first wait for ranks that may never come. See `run_as_rank`.

    Args:
        device: of this process.
        timeout_s: a collective that takes longer has lost a rank.

    Raises:
        ValueError: torchrun may start ranks again, and they would not meet.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout_s)
    store = _kept_store(limit)
    if store is None:
        dist.init_process_group(backend, timeout=limit)
    else:
        ranks = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group(backend, store=store, timeout=limit, **ranks)
    yield
    dist.destroy_process_group()


def _kept_store(limit: timedelta) -> dist.Store | None:
    """Returns this start's part of the store that a single torchrun keeps over restarts; None where it is new.

    Several agents count restarts differently: one that lost a process counts it, one that starts again with it does
    not, and one that came later begins at 0. What they have in common is the port, if it is new at every start.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not restarts:
        return None
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        raise ValueError(
            f"torchrun may start the ranks of several machines again (--max-restarts {restarts}), and keeps a store in "
            "which they would find what the ranks before them left; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the "
            "environment of torchrun, with --rdzv-backend c10d, or give --max-restarts 0"
        )
    # gloo of torch 2.15 would read the addresses of ranks that are gone
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=limit)
    return dist.PrefixStore(f"multicoca/start_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def run_as_rank(command: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its status, after an error at once.

    In an orderly end threads, and NCCL, would wait for ranks that may never come, before the error is printed.
    """
    try:
        status = command()
    except Exception:
        traceback.print_exc()
        status = 1
    if not dist.is_initialized():
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def own_cores() -> int:
    """Returns the cores for this rank: those that it may use, shared with the ranks that may use the same ones.

    All ranks call it together. Slurm gives each task cores of its own; torchrun's processes share all of them.
    """
    cores = usable_cores()
    if world_size() == 1:
        return len(cores)
    mine = (socket.gethostname(), cores)
    sharing = gather_objects([mine], torch.device("cpu")).count(mine)
    return max(1, len(cores) // sharing)


def has_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that another rank does not answer."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)


@contextmanager
def naming_lost_ranks(answer_s: float = _ANSWER_S) -> Iterator[None]:
    """Context that says which ranks are missing when a collective fails or times out.

    Args:
        answer_s: within which a rank must then answer.

    Raises:
        RuntimeError: the failure, with the ranks that did not answer.
    """
    group = side_group()
    try:
        yield
    except RuntimeError as error:
        if group is None or not has_lost_rank(error):
            raise
        try:
            dist.monitored_barrier(group, timeout=timedelta(seconds=answer_s), wait_all_ranks=True)
        except RuntimeError as missing:
            raise RuntimeError(
                f"rank {dist.get_rank()} of {dist.get_world_size()} waited in vain: {missing}. Look into the log of "
                "the ranks that it names; torchrun --max-restarts starts all again, from the last checkpoint"
            ) from error
        raise
