"""torch's Muon, with a choice of the precision in which it orthogonalises, and with few collectives on shards.

torch always iterates in bf16, which CPUs without bf16 instructions emulate: several times the rest of a step. In fp32
the same iteration (arXiv 2502.16982, section 2; coefficients and steps are torch's) is at least as exact.

For a sharded matrix, torch gathers the shards in every matrix product of the iteration. Here one rank receives all
shards of a matrix, orthogonalises it, and sends the shards of the result back. Each rank does so for one matrix of a
batch, so that a batch of as many matrices as ranks takes two all-to-alls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

Group = dict[str, Any]


class Muon(torch.optim.Muon):
    """See `torch.optim.Muon`; updates are as large as AdamW's at the same rate.

    Args:
        params: groups of matrices, all of them whole, or all of them sharded by rows over the same ranks.
        lr: learning rate.
        dtype: of the Newton-Schulz iteration, bfloat16 or wider, and of the updates that ranks exchange.
    """

    def __init__(self, params: Iterable[Group], lr: float, dtype: torch.dtype = torch.bfloat16):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Updates all parameters that have a gradient; every rank that shares them calls it.

        Where the attribute `found_inf` is 1, nothing changes; it is read on the device.
        """
        assert closure is None, "a closure is only for optimizers that evaluate the loss again"
        found_inf = getattr(self, "found_inf", None)
        self._used = None if found_inf is None else found_inf == 0
        matrices = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not any(isinstance(parameter, DTensor) for parameter, _ in matrices):
            for parameter, group in matrices:
                self._apply(parameter, group, self._orthogonalized(self._momentum(parameter, group), group))
            return
        ranks = shard_group([parameter for parameter, _ in matrices])
        # the ranks finish a batch at about the same time if its matrices are of about the same size
        matrices.sort(key=lambda matrix: sorted(matrix[0].shape), reverse=True)
        batches = [matrices[first : first + ranks.size()] for first in range(0, len(matrices), ranks.size())]
        run_staggered(self._update_batch(batch, ranks) for batch in batches)

    def _update_batch(self, batch: Sequence[tuple[DTensor, Group]], ranks: dist.ProcessGroup) -> Iterator[None]:
        """Updates up to one matrix for each rank; pauses whenever it has started an exchange."""
        shard_sizes = [parameter.to_local().numel() for parameter, _ in batch]
        shard_sizes += [0] * (ranks.size() - len(batch))
        parameter, group = batch[ranks.rank()] if ranks.rank() < len(batch) else (None, None)
        whole_sizes = [0] * ranks.size() if parameter is None else sizes_of_shards(parameter.shape, ranks.size())

        shards = torch.cat([self._momentum(*matrix).flatten() for matrix in batch])
        whole = shards.new_empty(sum(whole_sizes))  # the shards of ranks one after the other: rows in their order
        work = dist.all_to_all_single(whole, shards, whole_sizes, shard_sizes, group=ranks, async_op=True)
        yield
        work.wait()
        if parameter is not None:
            whole = self._orthogonalized(whole.view(parameter.shape), group).flatten()
        work = dist.all_to_all_single(shards, whole, shard_sizes, whole_sizes, group=ranks, async_op=True)
        yield
        work.wait()
        for matrix, update in zip(batch, shards.split(shard_sizes[: len(batch)]), strict=True):
            self._apply(*matrix, update)

    def _momentum(self, parameter: Tensor, group: Group) -> Tensor:
        """Takes in the gradient; returns this rank's part of what is to be orthogonalised."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        gradient, momentum = local(parameter.grad), local(state["momentum_buffer"])
        if self._used is not None:
            gradient = torch.where(self._used, gradient, momentum)  # of which the mean is what it was
        momentum.lerp_(gradient, 1 - group["momentum"])
        return (gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum).to(self.dtype)

    def _orthogonalized(self, update: Tensor, group: Group) -> Tensor:
        return orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])

    def _apply(self, parameter: Tensor, group: Group, update: Tensor) -> None:
        """Decays the parameter and adds this rank's part of the update to it."""
        rate = group["lr"] * (0.2 * math.sqrt(max(parameter.shape)))  # arXiv 2502.16982, equation 4
        values = local(parameter)
        changed = values * (1 - group["lr"] * group["weight_decay"])
        changed.add_(update.view(values.shape).to(values.dtype), alpha=-rate)
        values.copy_(changed if self._used is None else torch.where(self._used, changed, values))


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's shard, or the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(parameters: Sequence[DTensor]) -> dist.ProcessGroup:
    """Returns the ranks that share the rows of all these matrices; with HSDP, those of one copy of the model."""
    mesh, placements = parameters[0].device_mesh, parameters[0].placements
    for parameter in parameters:
        layout = (parameter.device_mesh, parameter.placements)
        assert layout == (mesh, placements), f"a matrix is sharded as {layout} and another one {(mesh, placements)}"
    axes = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    assert [placements[axis] for axis in axes] == [Shard(0)], f"matrices are sharded by rows, not as {placements}"
    return mesh.get_group(axes[0])


def sizes_of_shards(shape: Sequence[int], num_ranks: int) -> list[int]:
    """Returns the number of elements on each rank, whose rows are those of `torch.chunk`; the last may have none."""
    rows, columns = shape
    most = -(-rows // num_ranks)
    return [min(most, max(0, rows - rank * most)) * columns for rank in range(num_ranks)]


def run_staggered(tasks: Iterable[Iterator[None]]) -> None:
    """Runs tasks that pause, each one round behind the one before it, so that waits overlap with work."""
    waiting, running = list(tasks), []
    while waiting or running:
        running = [*waiting[:1], *running]  # the newest first: its exchange starts before the others' work
        waiting = waiting[1:]
        running = [task for task in running if next(task, task) is None]  # None: it has paused again


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Returns a matrix with the same singular vectors and singular values near 1, in the matrix's precision.

    Source: the quintic Newton-Schulz iteration of torch.optim.Muon.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
