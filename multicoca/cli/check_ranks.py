"""What `multicoca check` finds out about ranks: what each sees, how fast they are together, who is late."""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from itertools import groupby
from typing import TypeVar

import torch
import torch.distributed as dist

from multicoca.distributed.collectives import gather_objects, rank, sum_over_ranks, wait_for_all, world_size
from multicoca.distributed.setup import naming_lost_ranks, own_cores

T = TypeVar("T")
_CPU = torch.device("cpu")  # objects are gathered over gloo, which works where NCCL does not
_ROUNDS = 5
_LIMIT_S, _ANSWER_S = 5.0, 3.0  # the time-out that the last rank exceeds; what the others then have to say who is there


@dataclass(frozen=True)
class Finding:
    """What a check has found on a rank.

    Attributes:
        numbers: to print, those of rank 0.
        problem: what is wrong, empty if nothing is.
        has_left: whether the rank raised in the middle of the check.
        has_lost_rank: whether it raised because another one did not answer.
    """

    numbers: str
    problem: str = ""
    has_left: bool = False
    has_lost_rank: bool = False


def check_machines(device: torch.device) -> Finding:
    """What each rank sees; versions must be the same on all."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    versions = {
        "multicoca": version("multicoca"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "none",
    }
    sees = {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "GPUs": str(torch.cuda.device_count()),
        "cores": str(own_cores()),
        "memory": f"{memory / 2**30:.0f} GiB",
    }
    machines = gather_objects([sees | versions], _CPU)
    rows = [("", *machines[0])] + [
        (ranks, *values) for values, ranks in ranks_by([tuple(machine.values()) for machine in machines]).items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return Finding(
        "\n  ".join([f"{len(machines)} process{'es' if len(machines) > 1 else ''}", *table]),
        differences(machines, list(versions)),
    )


def differences(machines: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    """Returns which of the names have several values, and on which ranks; empty if none has."""
    found = {name: ranks_by([machine[name] for machine in machines]) for name in names}
    return "; ".join(
        f"{name} is " + ", ".join(f"{value} on {ranks}" for value, ranks in values.items())
        for name, values in found.items()
        if len(values) > 1
    )


def ranks_by(values: Sequence[T]) -> dict[T, str]:
    """Returns the different values of all ranks, each with its ranks, as in "ranks 0-2, 7"."""
    found: dict[T, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(value, []).append(number)
    return {value: spans(ranks) for value, ranks in found.items()}


def spans(ranks: Sequence[int]) -> str:
    """Returns ranks in a few words, as in "ranks 0-2, 7"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(parts)}"


def check_all_reduce(mib: int, device: torch.device) -> Finding:
    """The bandwidth of an all-reduce of some MiB of fp32, and that its sums are right.

    Source: nccl-tests, doc/PERFORMANCE.md: bus bandwidth is 2 (n - 1) / n of the algorithm's, bytes / time.
    """
    count = world_size()
    pattern = torch.arange(mib * 2**18, device=device).remainder(8).float()
    expected = count * pattern + count * (count - 1) / 2  # whole numbers, exact in fp32
    values = torch.empty_like(pattern)

    def is_right() -> bool:
        dist.all_reduce(torch.add(pattern, rank(), out=values))
        return torch.equal(values, expected)

    before = is_right()  # warms up, too
    wait_for_all()
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(values)
    values[0].item()  # waits for the device
    seconds = (time.perf_counter() - started) / _ROUNDS
    algorithm = mib * 2**20 / seconds / 1e9
    bus = 2 * (count - 1) / count * algorithm
    numbers = f"{mib} MiB in {1000 * seconds:.1f} ms: algorithm {algorithm:.2f} GB/s, bus {bus:.2f} GB/s"
    return Finding(numbers, "" if is_right() and before else "the sum over ranks is wrong")


def check_timeout(device: torch.device) -> Finding:
    """Ranks that wait for a late one get an error in time, which names it, and all can go on."""
    last, waited_s, said = world_size() - 1, 0.0, ""
    try:
        with naming_lost_ranks(_ANSWER_S):
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_LIMIT_S))
            started = time.perf_counter()
            try:
                if rank() < last:
                    dist.all_reduce(torch.ones(1), group=group)
            finally:
                waited_s = time.perf_counter() - started
    except RuntimeError as error:
        said = str(error)
    together = sum_over_ranks(torch.ones((), device=device)).item()  # here the late rank waits for the others
    numbers = f"of {_LIMIT_S:g} s, rank {last} being late on purpose: rank 0 has an error after {waited_s:.1f} s"
    if together != world_size():
        return Finding(numbers, f"{together:g} of {world_size()} ranks have gone on")
    if rank() < last and not (said and 0.8 * _LIMIT_S < waited_s < 2 * _LIMIT_S):
        return Finding(
            numbers, f"expected an error after {_LIMIT_S:g} s; got {said or 'none'!r} after {waited_s:.1f} s"
        )
    if rank() == 0 and not re.search(rf"Ranks {last} failed to pass", said):
        return Finding(numbers, f"the error does not name the late rank {last}: {' '.join(said.split())}")
    return Finding(numbers)
