"""What the precision of Muon's iteration does to a step of the default run: python benchmarks/muon.py [ROUNDS]

Both precisions take turns on the same model, autocast and batches: one process's share of them, with one thread, as the
run starts a process on each core. torch's own Muon iterates in bf16. As on a CPU without AVX-512:
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/muon.py
"""

from __future__ import annotations

import sys

import torch
from measuring import medians, print_about
from steps import captions, shapes_batch, step

from multicoca.cli.compose import compose_config
from multicoca.distributed.launch import local_processes
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.precision import choose_muon_precision, choose_precision


def main(rounds: int = 5) -> None:
    """Prints the seconds of a step with each precision and their ratio."""
    torch.set_num_threads(1)
    print_about()
    config, device = compose_config("train_shapes", []), torch.device("cpu")
    tokenizer = TextTokenizer.learn(captions({"depth", "motion"}, 500), config.text.vocab_size, 64)
    bundle = build_bundle(config.spec, tokenizer)
    autocast, reason = choose_precision("auto", device, config.model.width)
    _, muon_reason = choose_muon_precision("auto", device, config.model.width)
    own = config.data.batch_size // local_processes(config.train.cpu_processes, config.data.common_size())
    batches = [shapes_batch(name, bundle, config, own) for name in bundle.processors]
    seconds = medians(
        {
            name: step(bundle.network, batches, config.optim, config.loss, autocast, muon_dtype=dtype)
            for name, dtype in (("bf16 (before)", torch.bfloat16), ("fp32", torch.float32))
        },
        rounds,
    )
    print(
        f"{len(bundle.processors)} modalities, {own} pairs of each; training: {reason}; Muon would take {muon_reason}\n"
    )
    print("| " + " | ".join(seconds) + " | fp32 / bf16 |\n|---|---|---|")
    print("| " + " | ".join(f"{own:.3f} s" for own in seconds.values()), end="")
    print(f" | {seconds['fp32'] / seconds['bf16 (before)']:.2f} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
