"""In which precision training runs and Muon iterates: where bf16 is faster on this machine, by a short measurement.

Rank 0 measures and all ranks follow. A run keeps what it began with, so that a resumed run is equal to the bit. Here is
also whether kernels must give the same results in every run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from multicoca.distributed.collectives import rank, wait_for_all
from multicoca.files import write_text
from multicoca.train.muon import orthogonalized

_SPEEDUP_WORTH_IT = 1.15  # below it, rounding is not worth the gain
_MUON_COEFFICIENTS, _MUON_STEPS, _EPS = (3.4445, -4.775, 2.0315), 5, 1e-7  # torch.optim.Muon's

Choice = tuple[torch.dtype | None, str]  # dtype for autocast, None for fp32; and the reason for the log


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Context in which torch takes kernels whose results do not differ from run to run, if that is wanted.

    An operation that has none raises RuntimeError. On CPUs results do not differ anyway.
    """
    if not is_wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS has no other way to be told
    was_set, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_set)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def kept_precision(requested: str, device: torch.device, width: int, folder: Path) -> Choice:
    """Returns what `choose_precision` does on rank 0 at the first start of the run in a folder."""
    return _kept(folder / "precision.txt", requested, lambda asked: choose_precision(asked, device, width))


def kept_muon_precision(requested: str, device: torch.device, width: int, folder: Path) -> tuple[torch.dtype, str]:
    """Returns (dtype, reason) of Muon's iteration, as chosen on rank 0 at the first start of the run in a folder.

    A run that began before there was a choice stays with bf16.
    """
    file = folder / "muon_precision.txt"
    if requested == "auto" and not file.is_file() and any((folder / "checkpoints").glob("step_*")):
        requested = "bf16"
    dtype, reason = _kept(file, requested, lambda asked: choose_muon_precision(asked, device, width))
    return dtype or torch.float32, reason


def _kept(file: Path, requested: str, choose: Callable[[str], Choice]) -> Choice:
    """Returns a choice; a measured one is written down at the first start and read at all later ones."""
    if requested != "auto":
        return choose(requested)
    if rank() == 0 and not file.is_file():
        dtype, reason = choose("auto")
        write_text(file, f"{'fp32' if dtype is None else 'bf16'}\n{reason}")
    wait_for_all()
    chosen, reason = file.read_text(encoding="utf-8").split("\n", 1)
    return choose(chosen)[0], reason


def choose_precision(requested: str, device: torch.device, width: int) -> Choice:
    """Chooses the precision of training.

    Args:
        requested: "auto", "fp32" or "bf16".
        device: where training runs.
        width: the core's width, for a measurement of the right size.

    Raises:
        ValueError: another request.
    """
    block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)).to(device)
    x = torch.randn(4096, width, device=device)

    def run(dtype: torch.dtype | None) -> None:
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            block(x).float().sum().backward()

    return _choose("train.precision", "bf16 autocast", requested, device, run)


def choose_muon_precision(requested: str, device: torch.device, width: int) -> Choice:
    """Chooses the precision of Muon's iteration; arguments and errors are those of `choose_precision`."""
    matrix = torch.randn(width, 4 * width, device=device)

    def run(dtype: torch.dtype | None) -> None:
        orthogonalized(matrix.to(dtype or torch.float32), _MUON_COEFFICIENTS, _MUON_STEPS, _EPS)

    return _choose("optim.muon_precision", "bf16", requested, device, run)


def _choose(
    key: str, name: str, requested: str, device: torch.device, run: Callable[[torch.dtype | None], None]
) -> Choice:
    if requested == "fp32":
        return None, "fp32, as configured"
    if requested == "bf16":
        return torch.bfloat16, f"{name}, as configured"
    if requested != "auto":
        raise ValueError(f"{key} is '{requested}'; choose auto, fp32 or bf16")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return None, "fp32: this GPU has no bf16"
    speedup = _seconds(device, lambda: run(None)) / _seconds(device, lambda: run(torch.bfloat16))
    if speedup < _SPEEDUP_WORTH_IT:
        return None, f"fp32: {name} is only {speedup:.2f} times as fast here"
    return torch.bfloat16, f"{name}: {speedup:.2f} times as fast as fp32 here"


def _seconds(device: torch.device, run: Callable[[], None]) -> float:
    """Times a computation, best of several runs."""
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
