"""`Linear`: torch's, with weights laid out for a CPU while captions are written.

A step of decoding multiplies a handful of rows by every weight of the decoder. torch's kernel for that reads the
weights at a quarter of the memory's speed; oneDNN's, on weights in its own layout, takes about half the time. The
layout is made when the same weights come a second time and dropped when they change; it costs their size in
memory. `torch.backends.mkldnn.flags(enabled=False)` switches it off.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOST_ROWS = 64
_DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU has a packed layout for weights of a type; bf16 needs AVX-512 or newer instructions."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), _MOST_ROWS)
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 16, dtype=dtype), packed, None, "none", [], "")
    except RuntimeError:  # oneDNN's only way to say so
        return False
    return True


class Linear(nn.Linear):
    """See `torch.nn.Linear`.

    Attributes:
        may_pack: whether a second layout may be made; not where weights change without a trace, as those that FSDP2
            gathers do.
    """

    may_pack = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self._seen: tuple[int, int] | None = None
        self._packed: Tensor | None = None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Applies the layer."""
        packed = None if torch.is_grad_enabled() else self._packed_for(x)
        if packed is None:
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")

    def train(self, mode: bool = True) -> Linear:
        """Sets the mode; for training the layout is dropped."""
        if mode:
            self._seen = self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None, "_packed": None}  # the layout cannot be copied or written

    def _packed_for(self, x: Tensor) -> Tensor | None:
        """Returns the weight in oneDNN's layout, or None where torch's own kernel is to be used."""
        weight = self.weight
        if (
            self.training
            or not self.may_pack
            or x.device.type != "cpu"
            or x.dtype not in _DTYPES
            or x.dtype != weight.dtype
            or not 0 < x.numel() <= _MOST_ROWS * self.in_features
            or type(weight) is not nn.Parameter
            or weight.is_inference()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
            or not can_pack(x.dtype)
        ):
            return None
        now = (weight.data_ptr(), weight._version)
        if self._seen != now:
            self._seen, self._packed = now, None
            return None
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _MOST_ROWS)
        return self._packed
