"""The captioning loss behind the last layer, with its gradients: the matrix of logits, torch's, open_clip's, ours.

python benchmarks/caption_head.py [ROUNDS]      needs open_clip_torch

4,096 tokens of width 768. Memory is the peak above tokens, weights and their gradients, each in a process of its own.
open_clip's loss wants texts of equal length: here 64 texts of 64 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measuring import in_own_process, medians, peak_mib, print_about
from torch import Tensor

from multicoca.nn.cross_entropy import summed_cross_entropy

TOKENS, TEXTS, WIDTH, VOCABULARIES = 4096, 64, 768, (49408, 64000)
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """One matrix of logits in fp32 and a cross-entropy."""
    return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")


def open_clip(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What open_clip's CoCaLoss does with the decoder's logits; the mean."""
    logits = (hidden @ weight.T).unflatten(0, (TEXTS, -1))
    return F.cross_entropy(logits.permute(0, 2, 1), targets.unflatten(0, (TEXTS, -1)), ignore_index=0)


def chunked_by_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """torch's own way in chunks; with `reduction="sum"` in bf16 its sum would be several percent off."""
    if torch.is_autocast_enabled(hidden.device.type):  # which it does not look at
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    options = torch.nn.LinearCrossEntropyOptions()
    losses = F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
    return losses.float().sum()


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Rows in chunks, gradients formed in the forward pass."""
    return summed_cross_entropy(hidden, weight, targets)[0]


LOSSES = {"naive": naive, "open_clip": open_clip, "torch, chunked": chunked_by_torch, "ours": ours}
if "LinearCrossEntropyOptions" not in vars(torch.nn):  # it came with torch 2.13
    del LOSSES["torch, chunked"]


def inputs(vocabulary: int, tokens: int = TOKENS, device: str = "cpu") -> list[Tensor]:
    """Returns tokens, weights and the right words."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, WIDTH, device=device) * WIDTH**-0.5).requires_grad_()
    return [hidden, weight, torch.randint(1, vocabulary, (tokens,), device=device)]


def step(name: str, dtype: str, values: Sequence[Tensor]) -> Callable[[], float]:
    """Returns a function that runs a loss forward and back and gives its mean."""
    hidden, weight, targets = values

    def run() -> float:
        hidden.grad = weight.grad = None
        with torch.autocast(hidden.device.type, DTYPES[dtype] or torch.bfloat16, enabled=DTYPES[dtype] is not None):
            loss = LOSSES[name](hidden, weight, targets)
        loss.backward()
        return loss.item() / (1 if name == "open_clip" else len(targets))

    return run


def memory_mib(name: str, dtype: str, vocabulary: int, device: str = "cpu") -> float:
    """Returns the peak of a loss above what it reads and its gradients."""
    values = inputs(vocabulary, device=device)
    step(name, dtype, inputs(1024, 256, device))()
    return peak_mib(step(name, dtype, values), device) - sum(value.nbytes for value in values[:2]) / 2**20


def main(rounds: int = 3) -> None:
    """Measures all and prints a table."""
    print_about()
    print("| words | dtype | loss | mean | seconds | time / naive | memory, MiB |\n|---|---|---|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        values = inputs(vocabulary)
        for dtype in DTYPES:
            functions = {name: step(name, dtype, values) for name in LOSSES}
            seconds = medians(functions, rounds)
            for name, function in functions.items():
                memory = in_own_process(__file__, "--memory", name, dtype, vocabulary)
                ratio = seconds[name] / seconds["naive"]
                row = f"{function():.5f} | {seconds[name]:.2f} | {ratio:.2f} | {memory:.0f} |"
                print(f"| {vocabulary} | {dtype} | {name} | {row}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory_mib(*sys.argv[2:4], int(sys.argv[4])))
    else:
        main(*map(int, sys.argv[1:2]))
