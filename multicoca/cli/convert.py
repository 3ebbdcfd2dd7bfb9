"""`multicoca convert` and `multicoca export`: public weights in, and out again."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file

from multicoca.api import load
from multicoca.config import Config
from multicoca.convert.models import convert_open_clip
from multicoca.convert.open_clip import to_open_clip
from multicoca.files import check_writable, written_aside
from multicoca.model.weights import read_weights
from multicoca.runs.model_folder import CONFIG
from multicoca.runs.save import save

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # names of open_clip's files on the hub


def run_convert(arguments: list[str]) -> int:
    """Runs `multicoca convert`."""
    parser = argparse.ArgumentParser(prog="multicoca convert", description="Makes a model folder of public weights.")
    parser.add_argument("kind", choices=["open_clip"], help="whose weights they are: open_clip's CoCa")
    parser.add_argument("source", help="a file of weights, a folder with one, or owner/name of the hub")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the model folder to write")
    parser.add_argument("--modalities", default="image", help="image, or image,video for videos with the same weights")
    parser.add_argument("--num-frames", type=int, default=8, help="frames of a video (default: 8)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="another height and width of the images")
    parser.add_argument("--context-length", type=int, metavar="N", help="another longest text, in tokens")
    options = parser.parse_args(arguments)
    if options.out.exists() and not (options.out / "config.yaml").is_file() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} exists and is not a model folder; give another --out")
    check_writable(options.out / CONFIG)
    file = _find_weights(options.source)
    model = convert_open_clip(
        read_weights(file),
        options.modalities.split(","),
        options.image_size,
        options.context_length,
        options.num_frames,
    )
    card = f"# CoCa\n\nConverted from open_clip's weights `{options.source}` for {options.modalities}.\n"
    spec = model.config
    config = Config(name="open_clip", model=spec.model, modalities=spec.modalities, text=spec.text)
    save(options.out, model.bundle, config, card)
    count = sum(parameter.numel() for parameter in model.bundle.network.parameters())
    print(f"{count:,} parameters from {file}\nmodel: {options.out.resolve()}")
    return 0


def run_export(arguments: list[str]) -> int:
    """Runs `multicoca export`."""
    parser = argparse.ArgumentParser(prog="multicoca export", description="Writes the weights of a model for others.")
    parser.add_argument("kind", choices=["open_clip"], help="who is to read them: open_clip's CoCa")
    parser.add_argument("model", help="a model folder, or owner/name of the hub")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".safetensors, .pt or .bin")
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise ValueError(f"--out is {options.out}; expected a file that ends in .safetensors, .pt, .pth or .bin")
    check_writable(options.out)
    model = load(options.model, "cpu")
    weights = to_open_clip(model.bundle.network.state_dict(), model.config.model)
    with written_aside(options.out) as aside:
        if options.out.suffix == ".safetensors":
            save_file(weights, aside)
        else:
            torch.save(weights, aside)
    print(f"{sum(value.numel() for value in weights.values()):,} parameters in {len(weights)} tensors: {options.out}")
    left_out = [name for name in model.bundle.processors if name != "image"]
    if left_out:
        print(f"left out, since open_clip's CoCa has no place for it: {', '.join(left_out)}")
    return 0


def _find_weights(source: str) -> Path:
    """Finds the file of weights that a file name, a folder or an id of the hub stands for."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise ValueError(f"the folder {path} has none of {', '.join(_FILES)}; give the file itself")
        return found[0]
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix:
        return path
    problems = []
    for name in _FILES:
        try:
            return Path(hf_hub_download(source, name))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            problems.append(f"{name}: {error}")
    raise ValueError(f"there is no file {source}, and the hub gave no weights of that name: {'; '.join(problems)}")
