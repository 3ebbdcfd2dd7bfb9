"""What ranks tell each other once a step, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from multicoca.distributed.collectives import world_size

T = TypeVar("T")
_SHARE = 0.75  # of the time that a collective on the GPU may take: whoever waits must say so before NCCL aborts it


class Heartbeat:
    """The exchange in which all ranks meet once a step, over gloo, so that it never waits for a GPU.

    A rank that hangs is missed here first. The others get an error which `naming_lost_ranks` completes with its
    number, while what they have queued on their GPUs still waits.

    Args:
        timeout_s: within which a collective on the GPU must end.
    """

    def __init__(self, timeout_s: float):
        limit = timedelta(seconds=_SHARE * timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=limit) if world_size() > 1 else None

    def exchange(self, signal_number: int | None, objects: Sequence[T]) -> tuple[int | None, list[T]]:
        """Returns (the largest number of a signal that any rank has got, the objects of all in the order of ranks).

        While nobody has any objects, it costs two numbers.
        """
        if self._group is None:
            return signal_number, list(objects)
        told = torch.tensor([signal_number or 0, len(objects)])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        number, most = told.tolist()
        parts: list[list[T]] = [[] for _ in range(world_size())]
        if most:
            dist.all_gather_object(parts, list(objects), group=self._group)
        return number or None, [one for part in parts for one in part]
