"""The contrastive loss with its gradients: naive, open_clip's (local loss, gathered with gradients), ours; in one run.

python benchmarks/contrastive_loss.py [ROUNDS]      needs open_clip_torch

One process, fp32, embeddings of 512 numbers. Memory is the peak above inputs and gradients, each in a process of its
own. Where the matrices would not fit, a peer is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import psutil
import torch
import torch.nn.functional as F
from measuring import in_own_process, medians, peak_mib, print_about
from torch import Tensor

from multicoca.model.losses import contrastive_loss

WIDTH, SIZES = 512, (4096, 8192, 16384, 32768)
MANY = 16384  # pairs, beyond which one run of each is enough
MATRICES = 4.5  # of pairs by pairs in fp32 that the peers hold at a time


def naive(source: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """One matrix of logits and two cross-entropies."""
    logits = scale * source @ text.T
    labels = torch.arange(len(source), device=source.device)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)


def open_clip(source: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """open_clip's loss, the mean of the two directions."""
    from open_clip.loss import ClipLoss

    return ClipLoss(local_loss=True, gather_with_grad=True)(source, text, scale)


LOSSES = {"naive": naive, "open_clip": open_clip, "ours": contrastive_loss}
if find_spec("open_clip") is None:
    del LOSSES["open_clip"]


def inputs(pairs: int, device: str = "cpu") -> list[Tensor]:
    """Returns embeddings of sources and texts, and 1 / temperature."""
    torch.manual_seed(0)
    rows = [F.normalize(torch.randn(pairs, WIDTH, device=device), dim=1).requires_grad_() for _ in range(2)]
    return [*rows, torch.tensor([14.0], device=device, requires_grad=True)]


def step(name: str, values: Sequence[Tensor]) -> Callable[[], None]:
    """Returns a function that runs a loss forward and back."""

    def run() -> None:
        for value in values:
            value.grad = None
        LOSSES[name](*values).backward()

    return run


def memory_mib(name: str, pairs: int, device: str = "cpu") -> float:
    """Returns the peak of a loss above inputs and gradients."""
    values = inputs(pairs, device)
    step(name, inputs(1024, device))()
    return peak_mib(step(name, values), device) - sum(value.nbytes for value in values) / 2**20


def main(rounds: int = 3) -> None:
    """Measures all sizes and prints a table."""
    print_about()
    print("| pairs | loss | seconds | time / naive | memory, MiB |\n|---|---|---|---|---|")
    for pairs in SIZES:
        fit = MATRICES * 4 * pairs**2 < psutil.virtual_memory().available
        names = [name for name in LOSSES if name == "ours" or fit]
        values = inputs(pairs)
        seconds = medians({name: step(name, values) for name in names}, rounds if pairs <= MANY else 1)
        for name in names:
            ratio = f"{seconds[name] / seconds['naive']:.2f}" if "naive" in names else "-"
            memory = in_own_process(__file__, "--memory", name, pairs)
            print(f"| {pairs} | {name} | {seconds[name]:.2f} | {ratio} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory_mib(sys.argv[2], int(sys.argv[3])))
    else:
        main(*map(int, sys.argv[1:2]))
