"""Whether training runs under bf16 autocast: where this machine is faster with it, by a short measurement.

Rank 0 measures and all ranks follow. A run keeps what it began with, or it would not go on to the bit.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from multicoca.distributed.collectives import rank, wait_for_all
from multicoca.files import write_text

_SPEEDUP_WORTH_IT = 1.15  # below it, rounding is not worth the gain


def kept_precision(requested: str, device: torch.device, width: int, folder: Path) -> tuple[torch.dtype | None, str]:
    """Returns what `choose_precision` does on rank 0 at the first start of the run in a folder."""
    kept = folder / "precision.txt"
    if requested != "auto":
        return choose_precision(requested, device, width)
    if rank() == 0 and not kept.is_file():
        dtype, reason = choose_precision(requested, device, width)
        write_text(kept, f"{'fp32' if dtype is None else 'bf16'}\n{reason}")
    wait_for_all()
    chosen, reason = kept.read_text(encoding="utf-8").split("\n", 1)
    return choose_precision(chosen, device, width)[0], reason


def choose_precision(requested: str, device: torch.device, width: int) -> tuple[torch.dtype | None, str]:
    """Returns (dtype for autocast or None, the reason for the log).

    Args:
        requested: "auto", "fp32" or "bf16".
        device: where training runs.
        width: the core's width, for a measurement of the right size.

    Raises:
        ValueError: another request.
    """
    if requested == "fp32":
        return None, "fp32, as configured"
    if requested == "bf16":
        return torch.bfloat16, "bf16 autocast, as configured"
    if requested != "auto":
        raise ValueError(f"train.precision is '{requested}'; choose auto, fp32 or bf16")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return None, "fp32: this GPU has no bf16"
    full, half = (_seconds(device, width, dtype) for dtype in (None, torch.bfloat16))
    if full / half < _SPEEDUP_WORTH_IT:
        return None, f"fp32: bf16 autocast is only {full / half:.2f} times as fast here"
    return torch.bfloat16, f"bf16 autocast: {full / half:.2f} times as fast as fp32 here"


def _seconds(device: torch.device, width: int, dtype: torch.dtype | None) -> float:
    """Times forward and backward of an MLP, best of several runs."""
    block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)).to(device)
    x = torch.randn(4096, width, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            block(x).float().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
