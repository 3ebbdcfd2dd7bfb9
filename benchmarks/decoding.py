"""Writing captions with the same weights: open_clip's CoCa and ours, in one run, outputs compared.

python benchmarks/decoding.py [NAME] [ROUNDS]     needs open_clip_torch==3.3.0 and transformers==4.50.3

20 new tokens for 4 images, end of text forbidden, so that both do the same work. The unit is open_clip's forward
pass over the same 4 images with texts of 76 tokens. open_clip's default beam search is one of 3 groups; outputs are
compared with 1 group, which is what ours is.
"""

from __future__ import annotations

import sys

import torch
from measuring import medians, print_about
from peers import coca_pair

from multicoca.model.generate import DecodingConfig, generate

BATCH, NEW = 4, 20
BEGIN, END = 49406, 49407


def main(name: str = "coca_ViT-B-32", rounds: int = 3) -> None:
    """Prints a table for one thread and for two."""
    print_about()
    theirs, ours = coca_pair(name)
    theirs.eval()
    network = ours.bundle.network
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, 224, 224, generator=generator)
    ids = torch.randint(1, 49000, (BATCH, 76), generator=generator)

    def their(groups: int | None) -> torch.Tensor:
        how = (
            {"generation_type": "top_k", "top_k": 1} if groups is None else {"num_beams": 6, "num_beam_groups": groups}
        )
        return theirs.generate(pixels, seq_len=NEW + 1, min_seq_len=NEW, **how)

    @torch.no_grad()
    def our(strategy: str) -> torch.Tensor:
        context, _ = network.encode("image", {"pixels": pixels})
        config = DecodingConfig(strategy, min_length=NEW - 1, max_length=NEW + 1)
        return generate(network, "image", context, BEGIN, END, config).ids[:, 0]

    @torch.no_grad()
    def their_forward() -> None:
        theirs(pixels, ids)

    for label, expected, found in (("greedy", their(None), our("greedy")), ("beam 6", their(1), our("beam"))):
        same = (expected[:, :NEW] == found[:, :NEW]).all(dim=1).sum()  # the last token is an end that is forced
        print(f"{label}: {int(same)} of {BATCH} captions equal token by token")
    print(f"\n{name}, in units of open_clip's forward pass (median of {rounds})\n")
    print("| threads | forward, ms | greedy: open_clip | ours | beam 6: open_clip | ours |\n|---|---|---|---|---|---|")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        functions = {
            "forward": their_forward,
            "their greedy": lambda: their(None),
            "our greedy": lambda: our("greedy"),
            "their beam": lambda: their(3),
            "our beam": lambda: our("beam"),
        }
        found = medians(functions, rounds)
        unit = found.pop("forward")
        print(
            f"| {threads} | {1e3 * unit:.0f} | " + " | ".join(f"{value / unit:.2f}" for value in found.values()) + " |"
        )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
