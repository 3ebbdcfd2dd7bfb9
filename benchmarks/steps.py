"""What an optimizer step costs: three modalities together against each alone, and CoCa's two losses against each alone.

python benchmarks/steps.py [ROUNDS]

First the shapes world's models, 64 pairs of each modality, real captions and random inputs, in the precision that
training chooses here. Then images and texts of 64 tokens with the layers of the paper's ablation (table 8b: the encoder
of Base, 6 + 6 decoder layers) and with those of Base, both at half the width, batch 8, fp32. "Text of all layers" is
the contrastive loss alone with all decoder layers in the text-only half, a dual encoder of the same depth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from measuring import medians, print_about

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config, compose_training
from multicoca.config import Config
from multicoca.data.sample import Batch
from multicoca.data.shapes.language import captions_of
from multicoca.data.shapes.scene import draw_scene
from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.model.bundle import Bundle
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.optim import Average, OptimConfig, build_optimizers, learning_rates
from multicoca.train.precision import choose_precision
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

TOGETHER = {"joint": "image,video,points", "image": "image", "video": "video_own", "points": "points"}
LOSSES = {
    "both losses": LossConfig(),
    "captioning": LossConfig(contrastive_weight=0.0),
    "contrastive": LossConfig(captioning_weight=0.0),
    "contrastive, text of all layers": LossConfig(captioning_weight=0.0),
}
HALF_OF_BASE = {"width": 384, "num_heads": 6, "mlp_width": 1536, "embedding_width": 384}


def step(
    network: CoCa,
    batches: Sequence[Batch],
    optim: OptimConfig,
    loss: LossConfig,
    autocast: torch.dtype | None = None,
    parallel: ParallelConfig | None = None,
    muon_dtype: torch.dtype = torch.bfloat16,
) -> Callable[[], None]:
    """Returns a function that takes one optimizer step."""
    engine = parallelize(network.train(), parallel or ParallelConfig(), device_of(batches[0]), autocast)
    optimizers, parameters = build_optimizers(network, optim, muon_dtype), list(network.parameters())
    average = None if optim.ema_decay is None else Average(network, optim.ema_decay)

    def run() -> None:
        accumulate_gradients(engine, batches, loss, autocast)
        rates = learning_rates(500, 1000, optim, optimizers)
        _, used = optimizer_step(parameters, optimizers, rates, optim.clip_norm)
        if average is not None:
            average.update(500, used)

    return run


def device_of(batch: Batch) -> torch.device:
    """Returns where the inputs of a batch are."""
    return next(iter(batch.inputs.values())).device


def image_batch(size: int, size_px: int, length: int, vocabulary: int, device: str = "cpu") -> Batch:
    """Returns random images on the device with random texts of one length, which are where a loader leaves them."""
    torch.manual_seed(0)
    pixels = torch.randn(size, 3, size_px, size_px, device=device)
    ids, lengths = torch.randint(1, vocabulary, (size, length)), torch.full((size,), length)
    if pixels.is_cuda:
        ids, lengths = ids.pin_memory(), lengths.pin_memory()
    return Batch("image", {"pixels": pixels}, ids, lengths, ())


def shapes_batch(modality: str, bundle: Bundle, config: Config, size: int, device: str = "cpu") -> Batch:
    """Returns random inputs of the configured sizes with captions of the shapes world."""
    torch.manual_seed(0)
    sizes = config.modalities[modality]["processor"]
    texts = captions(bundle.processors[modality].scene_facts, size)
    if modality == "image":
        inputs = {"pixels": torch.randn(size, 3, sizes["size_px"], sizes["size_px"])}
    elif modality == "video":
        inputs = {"frames": torch.randn(size, sizes["num_frames"], 3, sizes["size_px"], sizes["size_px"])}
    else:
        inputs = {name: torch.randn(size, sizes["num_points"], 3) for name in ("xyz", "rgb")}
        inputs["mask"] = torch.ones(size, sizes["num_points"], dtype=torch.bool)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return Batch(modality, inputs, *bundle.tokenizer(texts), ())


def captions(facts: set[str], count: int) -> list[str]:
    """Returns a caption of each of the first scenes."""
    return [captions_of(draw_scene(0, "train", index), facts, 1)[0] for index in range(count)]


def together(size: int, device: str = "cpu") -> dict[str, Callable[[], None]]:
    """Returns the step of the joint model and those of a model of each modality alone."""
    steps = {}
    for name, modalities in TOGETHER.items():
        config = compose_config("train_shapes", [f"modality=[{modalities}]"])
        facts = {"depth", "motion"}
        tokenizer = TextTokenizer.learn(captions(facts, 500), config.text.vocab_size, config.model.context_length)
        bundle = build_bundle(config.spec, tokenizer)
        autocast, _ = choose_precision("auto", torch.device(device), config.model.width)
        batches = [shapes_batch(modality, bundle, config, size, device) for modality in bundle.processors]
        steps[name] = step(bundle.network.to(device), batches, config.optim, config.loss, autocast)
    return steps


def losses(
    decoder_layers: int, size: int, device: str = "cpu", autocast: torch.dtype | None = None, small: bool = True
) -> dict[str, Callable[[], None]]:
    """Returns the step of images and texts with each choice of losses, with Base's width or half of it."""
    config = compose_training(["experiment=coca_base"])
    sizes = replace(config.model, **(HALF_OF_BASE if small else {}))
    vocabulary = config.text.vocab_size * sizes.width // config.model.width  # so that the head has its share
    encoder = config.modalities["image"]["encoder"]
    encoder["timm_options"] |= {"embed_dim": sizes.width, "num_heads": sizes.num_heads}
    batch = image_batch(size, encoder["image_size_px"], sizes.context_length, vocabulary, device)
    steps = {}
    for name, loss in LOSSES.items():
        halves = (decoder_layers, 1) if "all layers" in name else (decoder_layers // 2, decoder_layers // 2)
        own = replace(sizes, unimodal_layers=halves[0], multimodal_layers=halves[1])  # the loss does not reach the 1
        network = image_network(own, config.modalities, vocabulary).to(device)
        steps[name] = step(network, [batch], config.optim, loss, autocast)
    return steps


def image_network(sizes: ModelConfig, modalities: dict, vocabulary: int) -> CoCa:
    """Builds an untrained model of images."""
    encoders = {name: modality.encoder for name, modality in build_modalities(modalities).items()}
    return CoCa(sizes, encoders, vocabulary, torch.Generator().manual_seed(0))


def print_together(rounds: int, size: int, device: str = "cpu") -> None:
    """Prints the seconds of each and their ratio."""
    seconds = medians(together(size, device), rounds)
    ratio = seconds["joint"] / (sum(seconds.values()) - seconds["joint"])
    print("| " + " | ".join(seconds) + " | joint / sum |\n|" + "---|" * (len(seconds) + 1))
    print("| " + " | ".join(f"{each:.3f}" for each in seconds.values()) + f" | {ratio:.2f} |\n", flush=True)


def print_losses(name: str, seconds: dict[str, float]) -> None:
    """Prints the seconds of each choice and their ratios."""
    print(f"| {name} | seconds | / contrastive | / contrastive, text of all layers |\n|---|---|---|---|")
    for loss, own in seconds.items():
        ratios = " | ".join(f"{own / seconds[unit]:.2f}" for unit in list(LOSSES)[2:])
        print(f"| {loss} | {own:.3f} | {ratios} |", flush=True)
    print()


def main(rounds: int = 5) -> None:
    """Prints both tables."""
    print_about()
    print_together(rounds, 64)
    for layers in (12, 24):
        print_losses(f"{layers} decoder layers", medians(losses(layers, 8), rounds))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
