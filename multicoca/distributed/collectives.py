"""The few collectives of training, each a no-op in a single process.

Gathering features carries gradients: the backward sums what all ranks send for a row. Gradients of parameters
are summed over ranks, never averaged (the convention of `multicoca.model.losses`).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

_BUCKET_ELEMENTS = 8 * 2**20  # 32 MiB of fp32: large enough to be bound by bandwidth, small enough to overlap


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


class _Gather(torch.autograd.Function):
    """all_gather along dim 0 whose backward is the sum over ranks of each rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # gloo has no reduce_scatter
        return gradient[rank() * ctx.rows :][: ctx.rows]


def gather(local: Float[Tensor, "rows width"]) -> Float[Tensor, "all_rows width"]:
    """Returns the rows of all ranks, in rank order; every rank must hold as many."""
    return local if world_size() == 1 else _Gather.apply(local)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Returns the sum over ranks, without gradients."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def sum_gradients(module: nn.Module) -> None:
    """Sums the gradients of all parameters over ranks, in buckets.

    A parameter without a gradient on this rank counts as zero, so that ranks always agree on what is sent; one that has
    none on any rank stays without, as in a single process, so that an optimizer leaves it alone.
    """
    if world_size() == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = parameters[0].device
    counts = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device)
    dist.all_reduce(counts)
    parameters = [parameter for parameter, count in zip(parameters, counts.tolist(), strict=True) if count]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for index, parameter in enumerate(parameters):
        bucket.append(parameter.grad)
        last = index == len(parameters) - 1
        if last or sum(gradient.numel() for gradient in bucket) >= _BUCKET_ELEMENTS:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))
            bucket = []


def broadcast_parameters(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)
