"""Adafactor in the form that CoCa was trained with, for whole parameters and for those in shards.

Of the squared gradients of a matrix only the means over its rows and columns are kept, whole on every rank, since they
are small; the mean of the updates, in bf16, lies as its parameter does.
Source: Shazeer and Stern (arXiv 1804.04235), algorithms 4 and 5, as changed by Zhai et al. (arXiv 2106.04560,
section 3.4); CoCa (arXiv 2205.01917), section 4.1, takes a momentum of 0.9 and decoupled decay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

_LEAST_FACTORED = 16  # sizes below it are kept whole
_DECAY, _MOST_KEPT = 0.8, 0.999  # of the mean of squares after t steps: 1 - t^-0.8, at most
_CLIP = 1.0  # root mean square of an update
_EPSILON = 1e-30


class Adafactor(torch.optim.Optimizer):
    """See the module.

    Args:
        params: parameters or groups of them.
        lr: learning rate; parameters are not scaled by it.
        momentum: share of the mean of updates that a step keeps.
        weight_decay: decoupled.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates all parameters that have a gradient; where the attribute `found_inf` is 1, nothing changes."""
        del closure
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    left_out = torch.zeros((), device=parameter.device) if found_inf is None else found_inf
                    used = 1 - left_out.double()
                    update = self._update(parameter, group["momentum"], used)
                    parameter.mul_(1 - used * (group["lr"] * group["weight_decay"]))
                    parameter.sub_(update * (used * group["lr"]))

    def _update(self, parameter: Tensor, momentum: float, used: Tensor) -> Tensor:
        """Takes in a gradient and returns the mean of updates; `used` is 1, or 0 for a gradient that does not count."""
        axes = _factored_axes(parameter.shape)
        gradient = torch.where(used > 0, parameter.grad, 0.0)
        state = self.state[parameter] or self._begin(parameter, axes)
        state["step"] = state["step"].to(parameter.device) + used.float()  # loading leaves it on the CPU
        new = (state["step"].double() ** -_DECAY).clamp(min=1 - _MOST_KEPT, max=1) * used
        new = new.to(gradient.dtype)
        squares = gradient.square() + _EPSILON
        if axes is None:
            state["squares"].lerp_(squares, new)
            update = gradient * state["squares"].rsqrt()
        else:
            second, largest = axes
            rows, columns = state["rows"], state["columns"]
            rows.lerp_(_whole(squares.sum(largest, keepdim=True)) / parameter.shape[largest], new)
            columns.lerp_(_whole(squares.sum(second, keepdim=True)) / parameter.shape[second], new)
            of_rows = (rows / rows.mean(second, keepdim=True)).rsqrt()
            update = gradient * _beside(of_rows, gradient) * _beside(columns.rsqrt(), gradient)
        size = (_whole(update.square().sum()) / parameter.numel()).sqrt()
        update = update / _beside((size / _CLIP).clamp(min=1), update)
        state["mean"] = state["mean"].to(torch.bfloat16)  # loading makes it as wide as its parameter
        mean = state["mean"].lerp(update.to(torch.bfloat16), 1 - momentum)  # a weight in bf16 would be another one
        state["mean"].copy_(torch.where(used > 0, mean, state["mean"]))  # checkpoints know it by its memory
        return state["mean"].to(gradient.dtype)

    def _begin(self, parameter: Tensor, axes: tuple[int, int] | None) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["mean"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        if axes is None:
            state["squares"] = torch.zeros_like(parameter)
            return state
        for name, reduced in (("columns", axes[0]), ("rows", axes[1])):
            shape = [1 if axis == reduced else size for axis, size in enumerate(parameter.shape)]
            state[name] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        return state


def _factored_axes(shape: torch.Size) -> tuple[int, int] | None:
    """Returns (the second largest axis, the largest), or None where squares are kept whole."""
    *_, second, largest = (-1, -1, *sorted(range(len(shape)), key=lambda axis: shape[axis]))
    return None if second < 0 or shape[second] < _LEAST_FACTORED else (second, largest)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _beside(value: Tensor, other: Tensor) -> Tensor:
    """Returns a whole value in a form that can be multiplied with the other one."""
    if not isinstance(other, DTensor):
        return value
    return DTensor.from_local(value, other.device_mesh, [Replicate()] * other.device_mesh.ndim, run_check=False)
