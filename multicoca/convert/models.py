"""From an open_clip checkpoint to a model of this library, and from such a model to an open_clip checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multicoca.api import MultiCoCa
from multicoca.convert.clip_tokenizer import CLEAN, clip_tokenizer
from multicoca.convert.open_clip import (
    from_open_clip,
    image_modality,
    model_config,
    resized_context,
    resized_images,
    unwrap,
    video_modality,
)
from multicoca.model.spec import ModelSpec
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextConfig

MODALITIES = ("image", "video")


def convert_open_clip(
    checkpoint: Any,
    modalities: Sequence[str] = ("image",),
    image_size_px: int | None = None,
    context_length: int | None = None,
    num_frames: int = 8,
) -> MultiCoCa:
    """Builds a model with the weights of an open_clip CoCa.

    Args:
        checkpoint: what its file holds, with or without the wrappers of a training run.
        modalities: "image", and "video" for the same weights over all frames of a clip.
        image_size_px: height and width of the images; None keeps that of the weights.
        context_length: the longest text in tokens; None keeps that of the weights.
        num_frames: frames of a video.

    Raises:
        ValueError: it is not such a checkpoint, or a tensor is missing, left over or misshapen.
    """
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or "image" not in modalities:
        raise ValueError(f"modalities is {','.join(modalities)}; expected image, or image,video")
    weights = unwrap(checkpoint)
    try:
        weights = resized_images(weights, image_size_px) if image_size_px else weights
        weights = resized_context(weights, context_length) if context_length else weights
        sizes, image = model_config(weights), image_modality(weights)
    except KeyError as error:
        raise ValueError(f"the checkpoint is not a whole CoCa of open_clip: it has no tensor {error}") from error
    specs = {"image": image}
    if "video" in modalities:
        specs["video"] = video_modality(image, num_frames)
    spec = ModelSpec(sizes, specs, TextConfig(clean=CLEAN))
    bundle = build_bundle(spec, clip_tokenizer(sizes.context_length))
    _fill(bundle.network, weights)
    return MultiCoCa(bundle, spec)


@torch.no_grad()
def _fill(network: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies the weights; the other modalities' heads get those of images."""
    found = from_open_clip(weights, network.state_dict())
    own = dict(network.named_parameters(remove_duplicate=False))
    for name, values in found.items():
        own.pop(name).copy_(values)
    for name, parameter in own.items():
        _, modality, rest = f"{name}..".split(".", 2)
        if name.startswith("heads.") and modality != "image":
            parameter.copy_(found[f"heads.image.{rest.rstrip('.')}"])
    left = [name for name in own if not name.startswith(("heads.", "encoders.video."))]
    assert not left, f"no weights came for {left}"
    network.eval()
