"""All that a GPU is measured by, as markdown: both losses, the steps of `steps.py`, and the throughput of the presets.

python benchmarks/gpu.py [--parts losses steps throughput] [--presets base large coca_ViT-L-14] [--batches 128 256]
python benchmarks/gpu.py --device cpu --small      the same on tiny sizes, to see that it runs

Training steps are whole ones, optimizer included, on random pairs that lie on the GPU, with texts that fill the
context, under bf16 autocast. FLOPs are those of a sample without recomputation, so MFU is what the model needs over
the GPU's dense bf16 peak; matrix products of FlopCounterMode are counted, nothing else. Memory is the peak of torch's
tensors. What does not fit is said. A line of its own for each size comes as soon as it is measured.
"""

from __future__ import annotations

import argparse
import copy
import gc
from dataclasses import replace

import caption_head
import contrastive_loss
import steps
import torch
from measuring import medians, print_about
from torch.utils.flop_counter import FlopCounterMode

from multicoca.cli.compose import compose_training
from multicoca.data.sample import Batch
from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.train.metrics import peak_flops
from multicoca.train.optim import OptimConfig
from multicoca.train.step import LossConfig, accumulate_gradients

PRESETS = {"base": (256, 512), "large": (128, 256), "coca_ViT-L-14": (128, 256)}  # with the batches that are tried
VARIANTS = {
    "eager": ParallelConfig(),
    "eager, checkpointed": ParallelConfig(checkpoint_activations=True),
    "compiled": ParallelConfig(compile=True),
    "compiled, checkpointed": ParallelConfig(compile=True, checkpoint_activations=True),
}
# open_clip 3.3.0, model_configs/coca_ViT-L-14.json, in the form that `multicoca convert` gives its weights
L_14 = ModelConfig(
    pooler="shared",
    pooler_heads=8,
    source_width=1024,
    adapters="where_needed",
    caption_heads="shared",
    context_length=76,
    cls_mask="open_clip",
    multimodal_block="open_clip",
)
L_14_SIZES = {"final_norm": False, "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0}
L_14_ENCODER = {
    "_target_": "multicoca_image.TimmEncoder",
    "name": "vit_base_patch32_clip_224",
    "image_size_px": 224,
    "timm_options": L_14_SIZES,
}
SMALL = {"unimodal_layers": 2, "multimodal_layers": 2, "num_queries": 8}


def main() -> None:
    """Prints the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("losses", "steps", "throughput"), default=None)
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=tuple(PRESETS))
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, default=None)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --small shows that the script runs")
    rounds, parts = 1 if options.small else options.rounds, options.parts or ("losses", "steps", "throughput")
    print_about()
    if "losses" in parts:
        print_contrastive(options.device, options.small, rounds)
        print_caption_head(options.device, options.small, rounds)
    if "steps" in parts:
        print_steps(options.device, options.small, rounds)
    if "throughput" in parts:
        print_throughput(options, rounds)


def print_contrastive(device: str, small: bool, rounds: int) -> None:
    """Prints the table of `contrastive_loss.py`; on a GPU all sizes fit."""
    print("| pairs | contrastive loss | ms | time / naive | memory, MiB |\n|---|---|---|---|---|")
    for pairs in (256,) if small else contrastive_loss.SIZES:
        values = contrastive_loss.inputs(pairs, device)
        functions = {name: contrastive_loss.step(name, values) for name in contrastive_loss.LOSSES}
        seconds = medians(functions, rounds)
        for name, own in seconds.items():
            memory = contrastive_loss.memory_mib(name, pairs, device)
            print(f"| {pairs} | {name} | {own * 1e3:.2f} | {own / seconds['naive']:.2f} | {memory:.0f} |", flush=True)
    print()


def print_caption_head(device: str, small: bool, rounds: int) -> None:
    """Prints the table of `caption_head.py`."""
    print("| words | dtype | caption loss | mean | ms | time / naive | memory, MiB |\n|---|---|---|---|---|---|---|")
    for words in (1000,) if small else caption_head.VOCABULARIES:
        values = caption_head.inputs(words, 256 if small else caption_head.TOKENS, device)
        for dtype in caption_head.DTYPES:
            functions = {name: caption_head.step(name, dtype, values) for name in caption_head.LOSSES}
            seconds = medians(functions, rounds)
            for name, own in seconds.items():
                mean, memory = functions[name](), caption_head.memory_mib(name, dtype, words, device)
                ratio = own / seconds["naive"]
                print(f"| {words} | {dtype} | {name} | {mean:.5f} | {own * 1e3:.2f} | {ratio:.2f} | {memory:.0f} |")
    print(flush=True)


def print_steps(device: str, small: bool, rounds: int) -> None:
    """Prints the tables of `steps.py`; on a GPU with Base's own width."""
    steps.print_together(rounds, 4 if small else 256, device)
    for layers in (2,) if small else (12, 24):
        functions = steps.losses(layers, 2 if small else 128, device, torch.bfloat16, small)
        steps.print_losses(f"{layers} decoder layers", medians(functions, rounds))


def print_throughput(options: argparse.Namespace, rounds: int) -> None:
    """Prints samples, FLOP/s, MFU and memory of every preset, variant and batch."""
    peak = peak_flops()
    print("| preset | parameters | GFLOP per sample | variant | batch | samples/s | TFLOP/s | MFU | memory, GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.presets:
        network, optim, size_px, vocabulary = preset(name, options.small)
        sizes = options.batches or ((4,) if options.small else PRESETS[name])
        one = steps.image_batch(2, size_px, network.config.context_length, vocabulary, options.device)
        flops = flops_of_sample(network, one)
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        for variant, size in ((variant, size) for variant in options.variants for size in sizes):
            batch = steps.image_batch(size, size_px, network.config.context_length, vocabulary, options.device)
            start = f"| {name} | {parameters:.0f}M | {flops / 1e9:.1f} | {variant} | {size} "
            try:
                seconds, memory = measure(network, batch, optim, VARIANTS[variant], rounds)
            except torch.OutOfMemoryError:
                print(f"{start}| does not fit | | | |", flush=True)
                continue
            rate = size / seconds
            mfu = "-" if peak is None else f"{rate * flops / peak:.1%}"
            gib = "-" if memory is None else f"{memory:.1f}"
            print(f"{start}| {rate:.1f} | {rate * flops / 1e12:.3g} | {mfu} | {gib} |", flush=True)


def preset(name: str, small: bool) -> tuple[CoCa, OptimConfig, int, int]:
    """Builds a model on the CPU; returns (it, its optimizer's settings, pixels of a side, words)."""
    if name in ("base", "large"):
        config = compose_training([f"experiment=coca_{name}"])
        sizes, optim, words = config.model, config.optim, config.text.vocab_size
        encoder = config.modalities["image"]["encoder"]
    else:
        sizes, optim, words, encoder = L_14, OptimConfig(), 49408, copy.deepcopy(L_14_ENCODER)
    if small:
        sizes, words = replace(sizes, **SMALL), 1000
        encoder["timm_options"] |= {"depth": 2}
        encoder["image_size_px"] = 2 * encoder["timm_options"]["patch_size"]
    processor = {"_target_": "multicoca_image.ImageProcessor", "size_px": encoder["image_size_px"]}
    network = steps.image_network(sizes, {"image": {"processor": processor, "encoder": encoder}}, words)
    return network, optim, encoder["image_size_px"], words


def flops_of_sample(network: CoCa, batch: Batch) -> float:
    """Counts the floating-point work of forward and backward pass, as training does."""
    device = batch.ids.device
    own = copy.deepcopy(network).to(device).train()
    with FlopCounterMode(display=False) as counter:
        accumulate_gradients(parallelize(own, ParallelConfig(), device), [batch], LossConfig(), torch.bfloat16)
    return counter.get_total_flops() / len(batch.ids)


def measure(
    network: CoCa, batch: Batch, optim: OptimConfig, parallel: ParallelConfig, rounds: int
) -> tuple[float, float | None]:
    """Returns the median seconds of a step of a copy of the model and the peak of memory in GiB, on a GPU."""
    release()
    own = copy.deepcopy(network).to(batch.ids.device)
    run = steps.step(own, [batch], optim, LossConfig(), torch.bfloat16, parallel)
    run()  # compiles, and makes the optimizer's state
    if not batch.ids.is_cuda:
        return medians({"step": run}, rounds)["step"], None
    torch.cuda.reset_peak_memory_stats()
    return medians({"step": run}, rounds)["step"], torch.cuda.max_memory_allocated() / 2**30


def release() -> None:
    """Frees what earlier measurements left: compiled code, cycles, and memory that is held for later."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
