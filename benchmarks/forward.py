"""A training step's forward, loss and backward with the same weights: open_clip's CoCa and ours, in one run.

python benchmarks/forward.py [NAME] [ROUNDS]      needs open_clip_torch==3.3.0

Batch 8, fp32, both losses; with texts that fill the context of 76 tokens, and with texts as long as captions are (8
to 20 tokens), which open_clip pads to 76. Memory is the peak of a step above what the process held before it, each
in a process of its own; gradients of all parameters are part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from measuring import in_own_process, medians, peak_mib, print_about
from open_clip.loss import CoCaLoss
from peers import coca_pair

from multicoca.model.losses import contrastive_loss

BATCH, CONTEXT = 8, 76
TEXTS = {"full, 76 tokens": (76, 77), "captions, 8 to 20 tokens": (8, 21)}


def steps(name: str, texts: str, kept: str | None = None) -> dict[str, Callable[[], torch.Tensor]]:
    """Returns the step of each as a function that gives the loss; `kept` alone stays in memory if it is named."""
    theirs, ours = coca_pair(name)
    network = ours.bundle.network
    theirs.train(), network.train()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, 224, 224, generator=generator)
    lengths = torch.randint(*TEXTS[texts], (BATCH,), generator=generator)
    ids = torch.randint(1, 49000, (BATCH, CONTEXT), generator=generator)
    ids[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    columns = min(-(-int(lengths.max()) // 8) * 8, CONTEXT)  # as the tokenizer pads
    losses = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)

    def their_step() -> torch.Tensor:
        theirs.zero_grad()
        loss = sum(losses(**theirs(pixels, ids), output_dict=True).values())
        loss.backward()
        return loss.detach()

    def our_step() -> torch.Tensor:
        network.zero_grad()
        outputs = network("image", {"pixels": pixels}, ids[:, :columns], lengths)
        contrastive = contrastive_loss(outputs.source, outputs.text, outputs.logit_scale, "mean")
        loss = contrastive + 2 * outputs.caption_loss / (lengths - 1).sum()
        loss.backward()
        return loss.detach()

    if kept == "open_clip":
        del network, ours
    if kept == "ours":
        del theirs
    return {"open_clip": their_step, "ours": our_step}


def main(name: str = "coca_ViT-B-32", rounds: int = 3) -> None:
    """Prints a table for one thread and for two."""
    print_about()
    print(f"{name}, batch {BATCH}, median of {rounds}\n")
    print("| texts | threads | open_clip, s | ours, s | ours / open_clip | losses |\n|---|---|---|---|---|---|")
    for texts in TEXTS:
        functions = steps(name, texts)
        values = ", ".join(f"{float(function()):.5f}" for function in functions.values())
        for threads in (1, 2):
            torch.set_num_threads(threads)
            theirs, ours = medians(functions, rounds).values()
            print(f"| {texts} | {threads} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} | {values} |", flush=True)
        del functions
    print("\n| texts | peak memory of a step, open_clip, MiB | ours | ours / open_clip |\n|---|---|---|---|")
    for texts in TEXTS:
        theirs, ours = (in_own_process(__file__, "--memory", name, texts, which) for which in ("open_clip", "ours"))
        print(f"| {texts} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |", flush=True)


def memory_mib(name: str, texts: str, which: str) -> float:
    """Returns the peak above what the process holds before the step."""
    return peak_mib(steps(name, texts, kept=which)[which])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory_mib(*sys.argv[2:]))
    else:
        main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
