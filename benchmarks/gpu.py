"""All that a GPU is judged by, as markdown: first whether it computes right, then how fast.

python benchmarks/gpu.py [--parts PART ...] [--presets base large coca_ViT-L-14] [--batches 128 256]
python benchmarks/gpu.py --device cpu --small      the same on tiny sizes, to see that it runs

The checks are those of `gpu_correctness.py`. Then come the throughput of the presets, optimizers and averages, clips
and clouds at the sizes that papers use, a data loader beside pairs that lie on the GPU, the steps of `steps.py` and
both losses. A part that fails is said and does not stop the others; the exit status is then 1.

Training steps are whole ones, optimizer included, with texts that fill the context, under bf16 autocast, on random
pairs that lie on the GPU where nothing else is said. FLOPs are those of a sample without recomputation, causal
attention counted as half, so MFU is what the model needs over the GPU's dense bf16 peak; matrix products of
FlopCounterMode are counted, nothing else. Memory is the peak of torch's tensors, and what was reserved for them. What
does not fit is said. A line of its own for each size comes as soon as it is measured.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import caption_head
import contrastive_loss
import numpy as np
import steps
import torch
from gpu_correctness import run_checks
from measuring import medians, print_about
from multicoca_image import ImageProcessor
from multicoca_points import PointEncoder
from multicoca_video import VideoEncoder
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from multicoca.cli.compose import compose_training
from multicoca.data.loader import Steps, training_batches, usable_workers
from multicoca.data.sample import Batch, Item
from multicoca.data.shared_memory import bytes_of
from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.distributed.setup import own_cores
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.metrics import peak_flops
from multicoca.train.optim import OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

PRESETS = {"base": 256, "large": 128, "coca_ViT-L-14": 128}  # with their batches
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


def main() -> int:
    """Prints the parts that were asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=tuple(PRESETS))
    parser.add_argument(
        "--variants", nargs="+", choices=tuple(VARIANTS), default=("compiled", "compiled, checkpointed", "eager")
    )
    parser.add_argument("--batches", nargs="+", type=int, default=None)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --small shows that the script runs")
    print_about()
    print_settings()
    return 0 if all([succeeds(name, options) for name in options.parts]) else 1  # a list: all of them run


def succeeds(name: str, options: argparse.Namespace) -> bool:
    """Runs a part; returns whether it went well."""
    started = time.perf_counter()
    try:
        good = PARTS[name](options, 1 if options.small else options.rounds) is not False
    except Exception:  # the next part is measured all the same
        print(f"part {name} failed:\n{traceback.format_exc()}")
        good = False
    print(f"part {name}: {'ok' if good else 'WRONG'}, {time.perf_counter() - started:.0f} s\n", flush=True)
    release()
    return good


def print_settings() -> None:
    """Prints what decides how a GPU computes."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; TF32 in products {products}, in "
          f"convolutions {convolutions}")  # fmt: skip
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        print(f"capability {major}.{minor}, {gib:.0f} GiB, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    print(flush=True)


def print_losses(options: argparse.Namespace, rounds: int) -> None:
    """Prints the tables of both losses."""
    print_contrastive(options.device, options.small, rounds)
    print_caption_head(options.device, options.small, rounds)


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


def print_steps(options: argparse.Namespace, rounds: int) -> None:
    """Prints the tables of `steps.py`; on a GPU with Base's own width."""
    device, small = options.device, options.small
    steps.print_together(rounds, 4 if small else 256, device)
    for layers in (2,) if small else (12, 24):
        functions = steps.losses(layers, 2 if small else 128, device, torch.bfloat16, small)
        steps.print_losses(f"{layers} decoder layers", medians(functions, rounds))


def print_throughput(options: argparse.Namespace, rounds: int) -> None:
    """Prints samples, FLOP/s, MFU and memory of every preset, variant and batch."""
    peak = peak_flops()
    print("| preset | parameters | GFLOP per sample | variant | batch | samples/s | TFLOP/s | MFU | memory, GiB "
          "| reserved |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.presets:
        network, optim, size_px, vocabulary = preset(name, options.small)
        sizes = options.batches or (4 if options.small else PRESETS[name],)
        one = steps.image_batch(2, size_px, network.config.context_length, vocabulary, options.device)
        flops = flops_of_sample(network, one)
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        for variant, size in ((variant, size) for variant in options.variants for size in sizes):
            batch = steps.image_batch(size, size_px, network.config.context_length, vocabulary, options.device)
            start = f"| {name} | {parameters:.0f}M | {flops / 1e9:.1f} | {variant} | {size} "
            try:
                seconds, *memory = measure(network, batch, optim, VARIANTS[variant], rounds)
            except torch.OutOfMemoryError:
                print(f"{start}| does not fit | | | | |", flush=True)
                continue
            rate = size / seconds
            mfu = "-" if peak is None else f"{rate * flops / peak:.1%}"
            gib = " | ".join(f"{each:.1f}" for each in memory)
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
    """Counts the floating-point work of forward and backward pass, as training does; causal attention as half."""
    device = steps.device_of(batch)
    own = copy.deepcopy(network).to(device).train()
    with FlopCounterMode(display=False) as counter:
        accumulate_gradients(parallelize(own, ParallelConfig(), device), [batch], LossConfig(), torch.bfloat16)
    layers, length = len(network.text.unimodal_blocks) + len(network.text.multimodal_blocks), batch.ids.shape[1]
    causal = 3 * layers * 4 * length**2 * network.config.width  # two products forward, four backward
    return counter.get_total_flops() / len(batch.ids) - causal / 2


def measure(
    network: CoCa, batch: Batch, optim: OptimConfig, parallel: ParallelConfig, rounds: int
) -> tuple[float, float, float]:
    """Returns (median seconds of a step of a copy of the model, peaks of used and reserved memory of a GPU in GiB)."""
    release()
    device = steps.device_of(batch)
    own = copy.deepcopy(network).to(device)
    run = steps.step(own, [batch], optim, LossConfig(), torch.bfloat16, parallel)
    run()  # compiles, and makes the optimizer's state
    if device.type != "cuda":
        return medians({"step": run}, rounds)["step"], math.nan, math.nan
    torch.cuda.reset_peak_memory_stats()
    seconds = medians({"step": run}, rounds)["step"]
    return seconds, torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30


def print_optimizers(options: argparse.Namespace, rounds: int) -> None:
    """Prints what Muon and an average of the parameters add to a step of Base."""
    network, _, size_px, vocabulary = preset("base", options.small)
    size = 4 if options.small else 256
    batch = steps.image_batch(size, size_px, network.config.context_length, vocabulary, options.device)
    print("| optimizer | step, ms | / AdamW |\n|---|---|---|")
    plain = None
    for name, optim in (("AdamW", OptimConfig()), ("Adafactor", OptimConfig(name="adafactor")),
                        ("Muon and AdamW", OptimConfig(muon_lr=0.02)),
                        ("AdamW, with an average", OptimConfig(ema_decay=0.999))):  # fmt: skip
        seconds, *_ = measure(network, batch, optim, ParallelConfig(), rounds)
        plain = plain or seconds
        print(f"| {name} | {seconds * 1e3:.1f} | {seconds / plain:.2f} |", flush=True)
    print()


def print_modalities(options: argparse.Namespace, rounds: int) -> None:
    """Prints the steps of clips and clouds at the sizes that papers use."""
    network, optim, size_px, vocabulary = preset("base", options.small)
    config, encoder = network.config, network.encoders["image"]
    frames, points, size = (2, 64, 2) if options.small else (8, 8192, 32)
    sizes = {"width": 64, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 8} if options.small else {}
    inputs = {
        "video": {"frames": torch.randn(size, frames, 3, size_px, size_px)},
        "points": {name: torch.randn(size, points, 3) for name in ("xyz", "rgb")},
    }
    encoders = {"video": VideoEncoder(encoder, frames), "points": PointEncoder(**sizes)}
    print("| modality | batch | samples/s | memory, GiB | reserved |\n|---|---|---|---|---|")
    for name, own in inputs.items():
        model = CoCa(config, {name: encoders[name]}, vocabulary, torch.Generator().manual_seed(0))
        texts = steps.image_batch(size, 8, config.context_length, vocabulary, options.device)
        own = {key: value.to(options.device) for key, value in own.items()}
        batch = replace(texts, modality=name, inputs=own)
        seconds, *memory = measure(model, batch, optim, ParallelConfig(), rounds)
        gib = " | ".join(f"{each:.1f}" for each in memory)
        length = {"video": f"{frames} frames", "points": f"{points} points"}[name]
        print(f"| {name}, {length} | {size} | {size / seconds:.1f} | {gib} |", flush=True)
    print()


def print_loader(options: argparse.Namespace, rounds: int) -> None:
    """Prints the samples per second of Base from JPEG files beside those of pairs that lie on the GPU."""
    network, optim, size_px, vocabulary = preset("base", options.small)
    size, count, many = (4, 2, 8) if options.small else (128, 20, 1024)
    synthetic = steps.image_batch(size, size_px, network.config.context_length, vocabulary, options.device)
    seconds, *_ = measure(network, synthetic, optim, ParallelConfig(compile=not options.small), rounds)
    with tempfile.TemporaryDirectory() as folder:
        items = []
        for number in range(many):
            file = Path(folder) / f"{number}.jpg"
            noise = np.random.default_rng(number).integers(0, 256, (40, 30, 3), np.uint8)
            Image.fromarray(noise).resize((400, 300)).save(file)
            items.append(Item(str(number), file, "image", (f"picture number {number} of many",)))
        tokenizer = TextTokenizer.learn((item.texts[0] for item in items), 300, network.config.context_length)
        processors = {"image": ImageProcessor(size_px=size_px)}
        source = Steps({"image": items}, processors, tokenizer, size, seed=0)
        own = copy.deepcopy(network).to(options.device).train()
        engine = parallelize(own, ParallelConfig(compile=not options.small), torch.device(options.device))
        optimizers, parameters = build_optimizers(own, optim), list(own.parameters())
        times = []
        workers = 0 if options.small else usable_workers(None, own_cores() - 1)
        for batches in training_batches(source, 0, count, workers):
            accumulate_gradients(engine, batches, LossConfig(), torch.bfloat16, processors=processors)
            optimizer_step(parameters, optimizers, [1e-4], optim.clip_norm)
            if own.text_projection.weight.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    half = len(times) // 2  # compiled, and with workers that have begun
    loaded = (times[-1] - times[half - 1]) / (len(times) - half)
    copied = bytes_of(batches[0].inputs) / size
    print(f"| Base, batch {size} | samples/s |\n|---|---|")
    print(f"| pairs on the GPU | {size / seconds:.1f} |\n| JPEG files | {size / loaded:.1f} |")
    print(f"| bytes copied for each picture of {size_px} px | {copied:.0f} |\n", flush=True)


def release() -> None:
    """Frees what earlier measurements left: compiled code, cycles, and memory that is held for later."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS = {
    "correctness": lambda options, rounds: run_checks(options.device),  # noqa: ARG005
    "throughput": print_throughput,
    "optimizers": print_optimizers,
    "modalities": print_modalities,
    "loader": print_loader,
    "steps": print_steps,
    "losses": print_losses,
}

if __name__ == "__main__":
    sys.exit(main())
