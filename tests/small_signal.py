"""A small modality that keeps the contract, for the tests that break one part of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from multicoca_signal import SignalEncoder, SignalProcessor
from torch import nn

from multicoca.modality import Modality
from multicoca.testing import check_modality
from multicoca.tokens import Tokens


def write_signals(folder: Path) -> list[Path]:
    """Writes three signals of one length."""
    rng = np.random.default_rng(0)
    for index in range(3):
        np.save(folder / f"{index}.npy", rng.normal(size=1024).astype(np.float32))
    return sorted(folder.iterdir())


class SmallSignal(SignalEncoder):
    """A small encoder that keeps the contract; its parts are what the broken ones change."""

    def __init__(self) -> None:
        super().__init__(width=32, num_layers=1, num_heads=2)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Tokens:
        signal, mask = inputs["signal"], inputs["mask"]
        spare = -signal.shape[1] % 64
        values = self.stem(nn.functional.pad(self.enter(signal, mask), (0, spare))[:, None]).transpose(1, 2)
        mask = nn.functional.pad(mask, (0, spare)).unflatten(1, (-1, 64)).any(2)
        return self.leave(self.norm(self.mix(values, mask)), mask)

    def enter(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return signal * mask

    def mix(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](values, src_key_padding_mask=~mask)

    def leave(self, values: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return Tokens(values, mask)


def check(
    files: list[Path],
    encoder: Callable[[], nn.Module] = SmallSignal,
    processor: Any = None,
    rebuild: Callable[[], nn.Module] | None = None,
) -> None:
    torch.manual_seed(0)
    check_modality(Modality("signal", processor or SignalProcessor(), encoder()), files, rebuild)
