"""Processes and devices: torchrun's environment decides, one process is the plain case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from multicoca.distributed.collectives import side_group

_ANSWER_S = 10.0  # within which a rank that lives answers
_LOST = ("Timed out", "timed out", "Connection closed", "Connection reset")  # how gloo's errors tell of a lost rank


def training_device() -> torch.device:
    """Returns this process's GPU, or the CPU where there is none.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    if torch.cuda.is_available():
        own, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
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

    Args:
        device: of this process.
        timeout_s: a collective that takes longer has lost a rank.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout_s)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps its store over restarts; gloo of torch 2.15 would read the addresses of ranks that are gone
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=limit)
        own = dist.PrefixStore(f"multicoca/start_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        ranks = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        dist.init_process_group(backend, store=own, timeout=limit, **ranks)
    else:
        dist.init_process_group(backend, timeout=limit)
    try:
        yield
    finally:
        dist.destroy_process_group()


def has_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that another rank does not answer."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Context that says which ranks are missing when a collective fails or times out.

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
            dist.monitored_barrier(group, timeout=timedelta(seconds=_ANSWER_S), wait_all_ranks=True)
        except RuntimeError as missing:
            raise RuntimeError(
                f"rank {dist.get_rank()} of {dist.get_world_size()} waited in vain: {missing}. Look into the log of "
                "the ranks that it names; torchrun --max-restarts starts all again, from the last checkpoint"
            ) from error
        raise
