"""The contrastive loss with its gradients: naive, open_clip's (local loss, gathered with gradients), ours; in one run.

python benchmarks/contrastive_loss.py [ROUNDS]      needs open_clip_torch

One process, fp32, embeddings of 512 numbers. Memory is the peak above what the process held before, inputs and their
gradients subtracted, each in a process of its own; where the matrices would not fit, a peer is left out.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from peers import print_about

from multicoca.model.losses import contrastive_loss

WIDTH, FITS = 512, 16384


def naive(source: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """One matrix of logits and two cross-entropies."""
    logits = scale * source @ text.T
    labels = torch.arange(len(source))
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)


def open_clip(source: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """open_clip's loss, the mean of the two directions."""
    return ClipLoss(local_loss=True, gather_with_grad=True)(source, text, scale)


LOSSES = {"naive": naive, "open_clip": open_clip, "ours": contrastive_loss}


def step(name: str, pairs: int) -> float:
    """Runs one loss forward and back; returns its seconds."""
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(pairs, WIDTH, generator=generator), dim=1).requires_grad_() for _ in range(2)]
    scale = torch.tensor([14.0], requires_grad=True)
    start = time.perf_counter()
    LOSSES[name](*rows, scale).backward()
    return time.perf_counter() - start


def main() -> None:
    """Measures all sizes and prints a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print_about()
    print("| pairs | loss | time / naive | memory, MiB |\n|---|---|---|---|")
    for pairs in (4096, 8192, 16384, 32768):
        names = [name for name in LOSSES if name == "ours" or pairs <= FITS]
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds + 1 if pairs <= FITS else 1):
            for name in names:
                times[name].append(step(name, pairs))
        for name in names:
            ran = subprocess.run([sys.executable, __file__, "memory", name, str(pairs)], capture_output=True, text=True)
            ratio = f"{median(times[name][1:]) / median(times['naive'][1:]):.2f}" if "naive" in names else "-"
            print(f"| {pairs} | {name} | {ratio} | {ran.stdout.strip()} |", flush=True)


def memory(name: str, pairs: int) -> None:
    """Prints the peak of a loss above inputs and gradients, in MiB."""
    step(name, 64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    step(name, pairs)
    print(round((_status("VmHWM") - before) / 1024 - 4 * pairs * WIDTH * 4 / 2**20))


def _status(field: str) -> int:
    """Returns a figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    memory(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["memory"] else main()
