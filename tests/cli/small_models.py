"""An untrained model folder of images and point clouds, made in a second, and files for it."""

from pathlib import Path

from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.data.shapes.scene import draw_scene
from multicoca.runs.model_folder import build_bundle
from multicoca.runs.save import save
from multicoca.text.tokenizer import TextTokenizer

SIZES = [
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.unimodal_layers=1", "model.multimodal_layers=1",
    "modalities.image.encoder.timm_options.depth=1", "modalities.points.encoder.depth=1",
]  # fmt: skip


def write_model(folder: Path, seed: int = 0, modality: str = "image,points") -> Path:
    """Writes a model folder; another seed gives other weights."""
    config = compose_config("train_shapes", [f"modality=[{modality}]", f"seed={seed}", *SIZES])
    tokenizer = TextTokenizer.learn(["a red cube", "a blue ball"], 300, config.model.context_length)
    save(folder, build_bundle(config.spec, tokenizer), config, "# small")
    return folder


def write_scenes(folder: Path, numbers: range, modality: str = "image") -> list[Path]:
    """Writes real files of scenes."""
    processor = build_processors(compose_config("train_shapes", [f"modality=[{modality}]"]).modalities)[modality]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{modality}{number:03d}{processor.scene_suffix}" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        file.write_bytes(processor.render(draw_scene(0, "train", number)))
    return files
