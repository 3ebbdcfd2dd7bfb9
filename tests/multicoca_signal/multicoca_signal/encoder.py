"""Signals to tokens: strided convolutions that do not overlap, then a small transformer.

No convolution reaches over the border of a token, so padding cannot leak into what is real.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from multicoca.tokens import Tokens

_STRIDES = (4, 4, 4)
_SAMPLES = 4 * 4 * 4  # per token


class SignalEncoder(nn.Module):
    """See `multicoca.modality.Encoder`."""

    def __init__(self, width: int = 128, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        channels = (1, 32, 64, width)
        layers = [
            nn.Sequential(nn.Conv1d(incoming, outgoing, stride, stride), nn.GELU())
            for incoming, outgoing, stride in zip(channels, channels[1:], _STRIDES, strict=False)
        ]
        self.stem = nn.Sequential(*layers, nn.Conv1d(width, width, 1))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes {"signal": [batch, samples], "mask": [batch, samples]}; 64 samples make a token."""
        spare = -inputs["signal"].shape[1] % _SAMPLES
        signal = functional.pad(inputs["signal"] * inputs["mask"], (0, spare))
        mask = functional.pad(inputs["mask"], (0, spare)).unflatten(1, (-1, _SAMPLES)).any(2)
        values = self.stem(signal[:, None]).transpose(1, 2)
        values = values + _positions(values.shape[1], self.width, values)
        for block in self.blocks:
            values = block(values, src_key_padding_mask=~mask)
        return Tokens(self.norm(values), mask)


def _positions(num_tokens: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines [tokens, width]. Source: arXiv 1706.03762, section 3.5."""
    rates = 10_000 ** -torch.linspace(0, 1, width // 2, device=like.device)
    angles = torch.arange(num_tokens, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)
