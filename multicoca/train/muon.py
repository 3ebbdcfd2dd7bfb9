"""torch's Muon, with a choice of the precision in which it orthogonalises.

torch always iterates in bf16, which CPUs without bf16 instructions emulate: several times the rest of a step. In fp32
the same iteration (arXiv 2502.16982, section 2; coefficients and steps are torch's) is at least as exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """See `torch.optim.Muon`; updates are as large as AdamW's at the same rate.

    Args:
        params: groups of matrices.
        lr: learning rate.
        dtype: of the Newton-Schulz iteration, bfloat16 or float32.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, dtype: torch.dtype = torch.bfloat16):
        super().__init__(params, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters that have a gradient."""
        if self.dtype == torch.bfloat16:
            return super().step(closure)
        assert closure is None, "a closure is only for optimizers that evaluate the loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return None

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonalized(update.to(self.dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))  # arXiv 2502.16982, equation 4
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-rate)


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
