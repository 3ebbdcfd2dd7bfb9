"""From a name of timm to its published settings and its model, and from a local file to the model's weights.

timm builds models and reads the weights of many families; this file adds what it leaves open: unknown names that
say which are near, and files that must fit to the last weight, where timm would leave the rest as it was initialised.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from multicoca.modality import MAX_LAYERS, MAX_SIZE, require
from multicoca.model.weights import read_weights


def published_settings(name: str) -> dict[str, Any]:
    """Returns what timm lists under a name (image size, normalisation, name of the classifier, ...), unbuilt.

    Args:
        name: a timm name with an optional tag, e.g. "convnext_tiny.fb_in22k".

    Raises:
        ValueError: timm has no such model, or no such tag of it.
        ImportError: timm is not installed.
    """
    timm = require("timm", "image")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        raise ValueError(
            f"timm {timm.__version__} has no model '{name}'. Near names: {', '.join(near) or 'none'}. "
            "All: timm.list_models()"
        )
    try:
        return timm.get_pretrained_cfg(name).to_dict()
    except RuntimeError as error:  # what timm raises for an unknown tag
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ValueError(f"{error} Names with tags: {', '.join(tags) or 'none'}") from error


# options of `timm.create_model` that open files, reach the network or make another kind of model
_REFUSED = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "features_only")
MAX_SIDE_PX = 1 << 13  # whose positions are some gigabytes in a large model


def create_model(name: str, pretrained: bool, num_classes: int, **options: Any) -> nn.Module:
    """Builds a timm model, whose classifier has `num_classes` outputs; 0 builds none.

    Raises:
        ValueError: an option is refused, or the weights cannot be downloaded.
    """
    timm = require("timm", "image")
    _check_options(options)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except FileNotFoundError as error:  # what huggingface_hub raises without a network
        raise ValueError(
            f"the weights of '{name}' could not be downloaded ({error}). Set encoder.checkpoint to a local file "
            "and encoder.pretrained to false, or connect to the hub"
        ) from error


def _check_options(options: Mapping[str, Any]) -> None:
    refused = [key for key in options if key in _REFUSED]
    if refused:
        raise ValueError(f"timm_options.{refused[0]} is not allowed; weights come from encoder.checkpoint")
    for key, value in options.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        largest = max((number for number in numbers if isinstance(number, (int, float))), default=0)
        most = MAX_LAYERS if key in ("depth", "depths", "layers") else MAX_SIDE_PX if key == "img_size" else MAX_SIZE
        if largest > most:
            raise ValueError(f"timm_options.{key} is {value}; expected at most {most:,}")


def read_checkpoint(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Reads weights of timm's, of a family that timm can read, or of an encoder of this package.

    Args:
        path: a .safetensors file, or a torch file without pickled objects.
        model: whose family and sizes the weights are adapted to: names, positions and patches.

    Raises:
        ValueError: there is no such file, or it holds no weights.
    """
    weights = read_weights(path)
    if all(key.startswith("model.") for key in weights):  # saved from an encoder of this package
        weights = {key.removeprefix("model."): value for key, value in weights.items()}
    family = vars(importlib.import_module(type(model).__module__))
    return family["checkpoint_filter_fn"](weights, model) if "checkpoint_filter_fn" in family else weights


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], path: Path, left_out: tuple[str, ...]) -> None:
    """Loads weights, all of which must fit.

    Args:
        model: what to fill.
        weights: from `read_checkpoint`.
        path: of their file, for the message.
        left_out: beginnings of the names that a file may have and the encoder never needs, such as those of heads.

    Raises:
        ValueError: names or shapes do not match.
    """
    weights = {key: value for key, value in weights.items() if not key.startswith(left_out)}
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    reshaped = [
        f"{key} {list(weights[key].shape)}, expected {list(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if weights[key].shape != own[key].shape
    ]
    if missing or unexpected or reshaped:
        raise ValueError(
            f"the checkpoint '{path}' does not fit the model. Missing: {_some(missing)}. Unexpected: "
            f"{_some(unexpected)}. Other shapes: {_some(reshaped)}. Set encoder.name and timm_options as for the "
            "model that was saved"
        )
    model.load_state_dict(weights)


def _some(names: list[str]) -> str:
    """Lists the first names and counts the rest."""
    return (", ".join(names[:6]) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")
