"""The few collectives of training, each a no-op in a single process.

Gathering features carries gradients: the backward sums what all ranks send for a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # the launcher notices when rank 0 dies


def world_size() -> int:
    """Returns the number of processes, 1 when not distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process, 0 when not distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_all() -> None:
    """Returns when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Context that rank 0 goes through before the others, however long it takes: it may read, write or evaluate.

    Raises:
        ValueError, OSError: what rank 0 has raised, on all ranks.
    """
    if world_size() == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    if rank() == 0:
        try:
            yield
        except (ValueError, OSError) as error:
            dist.broadcast_object_list([_plain(error)], group=group)
            raise
        dist.broadcast_object_list([None], group=group)
    else:
        failure: list[ValueError | OSError | None] = [None]
        dist.broadcast_object_list(failure, group=group)
        if failure[0] is not None:
            raise failure[0]
        yield
    dist.destroy_process_group(group)


def _plain(error: ValueError | OSError) -> ValueError | OSError:
    """Returns an error with the same text that any rank can read."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return ValueError(str(error))


class _Gather(torch.autograd.Function):
    """all_gather along dim 0 whose backward is the sum over ranks of each rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        parts = list(gradient.contiguous().chunk(world_size()))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


def gather(local: Float[Tensor, "rows width"]) -> Float[Tensor, "all_rows width"]:
    """Returns the rows of all ranks, in rank order; every rank must hold as many."""
    return local if world_size() == 1 else _Gather.apply(local)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Returns the sum over ranks, without gradients."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def true_on_all_ranks(value: Bool[Tensor, ""]) -> bool:
    """Returns whether something holds on every rank."""
    return not sum_over_ranks((~value).int())


def gather_objects(local: Sequence[T], device: torch.device) -> list[T]:
    """Returns the objects of all ranks, in rank order; while no rank has any, it costs one number."""
    if world_size() == 1 or not sum_over_ranks(torch.tensor(len(local), device=device)):
        return list(local)
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(local))
    return [one for part in parts for one in part]


def broadcast_parameters(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


def side_group() -> dist.ProcessGroup | None:
    """Returns a gloo group of all ranks for what runs beside training, such as writing checkpoints; None if alone."""
    return dist.new_group(backend="gloo") if world_size() > 1 else None
