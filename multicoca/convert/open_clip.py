"""open_clip's CoCa weights and this core's, there and back; every tensor by name and shape, none left over.

The sizes are read from the tensors. Heads cannot be: all of open_clip's CoCa configurations have 64 channels in a
head and 8 heads in the pooler. The core runs these weights with the options of `model_config`; the image tower is
timm's CLIP vision transformer without its last norm.
Source: open_clip 3.3.0, coca_model.py and transformer.py (MIT license).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multicoca.model.config import ModelConfig

_HEAD_WIDTH, _POOLER_HEADS = 64, 8
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as in open_clip
_IMAGE = "encoders.image.model."
_TOWER = "vit_base_patch32_clip_224"  # timm's CLIP tower; its sizes are set from the tensors
_ROW = "text.positional_embedding"
# what the names of a checkpoint look like when it is another model's
_LOOKS_LIKE = (
    ("text_decoder.embed_dim", "open_clip's MaMMUT"),
    ("encoders.", "a MultiCoCa model, which needs no conversion"),
    ("vision_model.", "a CLIP or SigLIP model of Hugging Face transformers"),
    ("visual.trunk.", "an open_clip model with an image tower of timm"),
    ("visual.", "CLIP in the form of open_clip or OpenAI, without a caption decoder"),
    ("img_attn_pool", "the CoCa of lucidrains' CoCa-pytorch"),
    ("vision_encoder.", "the CoCa of torchmultimodal"),
    ("patch_embed.", "a vision transformer of timm"),
    ("layer1.", "a ResNet of torchvision or timm"),
)


@dataclass(frozen=True)
class Link:
    """Tensors that hold the same numbers: laid one after another along dim 0, theirs are ours.

    Attributes:
        theirs: names in open_clip.
        ours: names here.
        transposed: theirs are [in, out] where ours are [out, in].
        lead: dimensions of size 1 that ours has in front of theirs.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transposed: bool = False
    lead: int = 0


def model_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """Reads the core's sizes from the tensors of an open_clip CoCa."""
    context_length, width = weights[_ROW].shape
    return ModelConfig(
        width=width,
        num_heads=width // _HEAD_WIDTH,
        mlp_width=len(weights["text.transformer.resblocks.0.mlp.c_fc.bias"]),
        unimodal_layers=_count(weights, "text.transformer.resblocks."),
        multimodal_layers=_count(weights, "text_decoder.resblocks."),
        embedding_width=weights["text.text_projection"].shape[1],
        pooler="shared",
        num_queries=len(weights["visual.attn_pool.query"]),
        pooler_heads=_POOLER_HEADS,
        source_width=len(weights["visual.class_embedding"]),
        adapters="where_needed",
        caption_heads="shared",
        context_length=context_length - 1,  # the last row is that of CLS
        cls_mask="open_clip",
        multimodal_block="open_clip",
    )


def image_modality(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the configuration of the image modality."""
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    size = patch * grid_size(weights)
    sizes = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": _count(weights, "visual.transformer.resblocks."),
        "num_heads": width // _HEAD_WIDTH,
        "mlp_ratio": len(weights["visual.transformer.resblocks.0.mlp.c_fc.bias"]) / width,
    }
    return {
        "processor": {
            "_target_": "multicoca_image.ImageProcessor",
            "size_px": size,
            "mean": list(_MEAN),
            "std": list(_STD),
            "interpolation": "bicubic",
        },
        "encoder": {
            "_target_": "multicoca_image.TimmEncoder",
            "name": _TOWER,
            "image_size_px": size,
            "timm_options": {"final_norm": False, **sizes},
        },
    }


def video_modality(image: Mapping[str, Any], num_frames: int) -> dict[str, Any]:
    """Returns the configuration of a video modality that needs no training: all frames' tokens to the same poolers.

    Source: VideoCoCa (arXiv 2212.04979), section 3.2.
    """
    constants = {key: image["processor"][key] for key in ("size_px", "mean", "std")}
    return {
        "processor": {"_target_": "multicoca_video.VideoProcessor", "num_frames": num_frames, **constants},
        "encoder": {
            "_target_": "multicoca_video.VideoEncoder",
            "num_frames": num_frames,
            "position": "zeros",
            "frame_encoder": {"_encoder_of_": "image"},
        },
    }


def from_open_clip(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translates a checkpoint.

    Args:
        weights: of an open_clip CoCa, as `unwrap` gives them.
        like: this core's tensors, whose names and shapes are to be filled.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the message names it.
    """
    links = list(_links(model_config(weights), _count(weights, "visual.transformer.resblocks.")))
    _check_names(weights, {name for link in links for name in link.theirs})
    found: dict[str, Tensor] = {}
    for link in links:
        values = _joined([weights[name].T if link.transposed else weights[name] for name in link.theirs])
        values = values.reshape((1,) * link.lead + values.shape)
        rows = [len(like[name]) for name in link.ours]
        parts = values.split(rows) if sum(rows) == len(values) else [values]
        if [part.shape for part in parts] != [like[name].shape for name in link.ours]:
            shapes = ", ".join(f"{name} {list(weights[name].shape)}" for name in link.theirs)
            expected = ", ".join(f"{name} {list(like[name].shape)}" for name in link.ours)
            raise ValueError(f"the checkpoint's {shapes} does not fit the model's {expected}")
        found |= dict(zip(link.ours, parts, strict=True))
    return found


def to_open_clip(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Translates back: the tensors of the image modality and the text decoder under open_clip's names.

    Raises:
        ValueError: the model has a form that open_clip's CoCa has not.
    """
    wanted = {
        "pooler": "shared",
        "cls_mask": "open_clip",
        "multimodal_block": "open_clip",
        "adapters": "where_needed",
        "pooler_heads": _POOLER_HEADS,
        "num_heads": config.width // _HEAD_WIDTH,
    }
    other = [f"{key} is {getattr(config, key)}, not {value}" for key, value in wanted.items()]
    other = [text for text, (key, value) in zip(other, wanted.items(), strict=True) if getattr(config, key) != value]
    if "heads.image.log_scale" not in weights:
        other.append("it has no image modality")
    if "heads.image.adapter.weight" in weights:
        other.append("its image encoder has an adapter")
    if other:
        raise ValueError(f"open_clip's CoCa cannot hold this model: {'; '.join(other)}")
    found: dict[str, Tensor] = {}
    for link in _links(config, _count(weights, f"{_IMAGE}blocks.")):
        missing = [name for name in link.ours if name not in weights]
        if missing:
            raise ValueError(f"open_clip's CoCa cannot hold this model: it has no {', '.join(missing)}")
        values = _joined([weights[name] for name in link.ours])
        values = values.reshape(values.shape[link.lead :])
        parts = values.chunk(len(link.theirs)) if len(link.theirs) > 1 else [values]
        parts = [(part.T if link.transposed else part).contiguous() for part in parts]
        found |= dict(zip(link.theirs, parts, strict=True))
    return found


def unwrap(checkpoint: Any) -> dict[str, Tensor]:
    """Takes the tensors out of what a training run saved.

    Known wrappers: `state_dict_ema` and `state_dict` (the first wins), `module.` before every name, a temperature of
    shape (1,).

    Raises:
        ValueError: it holds no open_clip CoCa; the message says what it looks like.
    """
    for key in ("state_dict_ema", "state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f"the checkpoint holds {type(checkpoint).__name__}, expected tensors by name")
    weights = {str(name).removeprefix("module."): value for name, value in checkpoint.items()}
    if not any(name.startswith("text_decoder.cross_attn.") for name in weights):
        looks = [what for start, what in _LOOKS_LIKE if any(name.startswith(start) for name in weights)]
        first = ", ".join(list(weights)[:3])
        raise ValueError(
            f"the checkpoint is not open_clip's CoCa; it looks like {looks[0] if looks else 'no model known here'} "
            f"(its first tensors: {first})"
        )
    if "logit_bias" in weights:
        raise ValueError("the checkpoint has a logit_bias (a sigmoid loss), which this core has no place for")
    if "logit_scale" in weights:
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def grid_size(weights: Mapping[str, Tensor]) -> int:
    """Returns how many patches stand side by side in the images of the weights."""
    return math.isqrt(len(weights["visual.positional_embedding"]) - 1)


def resized_images(weights: Mapping[str, Tensor], image_size_px: int) -> dict[str, Tensor]:
    """Fits the patches' positions to another image size, bicubic with antialiasing, as in open_clip.

    Raises:
        ValueError: the size is not a multiple of the patch size.
    """
    name, patch, old = "visual.positional_embedding", weights["visual.conv1.weight"].shape[-1], grid_size(weights)
    if image_size_px % patch or image_size_px < patch:
        raise ValueError(f"the image size is {image_size_px} px; expected a multiple of the patch size, {patch} px")
    new = image_size_px // patch
    if new == old:
        return dict(weights)
    cls, rows = weights[name][:1], weights[name][1:]
    square = rows.float().T.reshape(1, -1, old, old)
    rows = F.interpolate(square, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return {**weights, name: torch.cat([cls, rows.flatten(2)[0].T.to(cls.dtype)])}


def resized_context(weights: Mapping[str, Tensor], context_length: int) -> dict[str, Tensor]:
    """Fits the texts' positions to another context length; the row of CLS stays as it is.

    A shorter context keeps the first rows. For a longer one the rows are interpolated linearly, as in open_clip.
    """
    rows, cls = weights[_ROW][:-1], weights[_ROW][-1:]
    if context_length > len(rows):
        stretched = rows.T[None].float()
        rows = F.interpolate(stretched, size=context_length, mode="linear")[0].T.to(rows.dtype)
    return {**weights, _ROW: torch.cat([rows[:context_length], cls])}


def _check_names(weights: Mapping[str, Tensor], wanted: set[str]) -> None:
    missing, unused = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    if missing or unused:
        raise ValueError(
            f"the checkpoint is not a whole CoCa of open_clip. Missing: {_some(missing)}. Not used: {_some(unused)}"
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)}
    return len(numbers)


def _some(names: list[str]) -> str:
    return (", ".join(names[:6]) or "none") + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _links(config: ModelConfig, image_layers: int) -> Iterator[Link]:
    """Yields all pairs of names."""
    yield Link(("logit_scale",), ("heads.image.log_scale",), lead=1)
    yield from _image_links(image_layers)
    pooler, theirs = "poolers.shared.", "visual.attn_pool."
    attention = f"{pooler}attention."
    yield Link((f"{theirs}query",), (f"{pooler}queries",))
    yield Link((f"{theirs}attn.q_proj_weight",), (f"{attention}query.weight",))
    yield Link((f"{theirs}attn.k_proj_weight", f"{theirs}attn.v_proj_weight"), (f"{attention}key_value.weight",))
    yield Link((f"{theirs}attn.in_proj_bias",), (f"{attention}query.bias", f"{attention}key_value.bias"))
    yield from _same(f"{theirs}attn.out_proj", f"{attention}out")
    yield from _same(f"{theirs}ln_q", f"{pooler}norm_queries")
    yield from _same(f"{theirs}ln_k", f"{pooler}norm_tokens")
    yield from _same("visual.ln_post", f"{pooler}norm_out")
    yield Link(("visual.proj",), ("heads.image.source_projection.weight",), transposed=True)
    yield Link(("text.token_embedding.weight",), ("text.token_embedding.weight",))
    yield Link((_ROW,), ("text.position_embedding",))
    yield Link(("text.cls_emb",), ("text.cls_embedding",))
    yield from _same("text.ln_final", "text.norm_cls")
    yield Link(("text.text_projection",), ("text_projection.weight",), transposed=True)
    yield from _same("text_decoder.ln_final", "text.norm_caption")
    yield Link(("text_decoder.text_projection",), ("heads.image.caption_head.weight",), transposed=True)
    for i in range(config.unimodal_layers):
        theirs, ours = f"text.transformer.resblocks.{i}.", f"text.unimodal_blocks.{i}."
        yield from _self_attention_links(theirs, ours)
        yield from _mlp_links(theirs, f"{ours}norm_mlp", f"{ours}mlp")
    for i in range(config.multimodal_layers):
        theirs, ours = f"text_decoder.resblocks.{i}.", f"text.multimodal_blocks.{i}."
        yield from _self_attention_links(theirs, ours)
        yield from _mlp_links(theirs, f"{ours}norm_text_mlp", f"{ours}text_mlp")
        theirs, attention = f"text_decoder.cross_attn.{i}.", f"{ours}cross_attention."
        yield from _same(f"{theirs}ln_1", f"{ours}norm_cross")
        yield from _same(f"{theirs}ln_1_kv", f"{ours}norm_context")
        for kind in ("weight", "bias"):
            yield Link((f"{theirs}attn.in_proj_{kind}",), (f"{attention}query.{kind}", f"{attention}key_value.{kind}"))
        yield from _same(f"{theirs}attn.out_proj", f"{attention}out")
        yield from _mlp_links(theirs, f"{ours}norm_mlp", f"{ours}mlp")


def _image_links(layers: int) -> Iterator[Link]:
    yield Link(("visual.class_embedding",), (f"{_IMAGE}cls_token",), lead=2)
    yield Link(("visual.positional_embedding",), (f"{_IMAGE}pos_embed",), lead=1)
    yield Link(("visual.conv1.weight",), (f"{_IMAGE}patch_embed.proj.weight",))
    yield from _same("visual.ln_pre", f"{_IMAGE}norm_pre")
    for i in range(layers):
        theirs, ours = f"visual.transformer.resblocks.{i}.", f"{_IMAGE}blocks.{i}."
        for kind in ("weight", "bias"):
            yield Link((f"{theirs}attn.in_proj_{kind}",), (f"{ours}attn.qkv.{kind}",))
        pairs = {"ln_1": "norm1", "attn.out_proj": "attn.proj", "ln_2": "norm2"}
        for name, own in {**pairs, "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}.items():
            yield from _same(f"{theirs}{name}", f"{ours}{own}")


def _self_attention_links(theirs: str, ours: str) -> Iterator[Link]:
    yield from _same(f"{theirs}ln_1", f"{ours}norm_attention")
    for kind in ("weight", "bias"):
        yield Link((f"{theirs}attn.in_proj_{kind}",), (f"{ours}attention.query_key_value.{kind}",))
    yield from _same(f"{theirs}attn.out_proj", f"{ours}attention.out")


def _mlp_links(theirs: str, norm: str, mlp: str) -> Iterator[Link]:
    yield from _same(f"{theirs}ln_2", norm)
    yield from _same(f"{theirs}mlp.c_fc", f"{mlp}.up")
    yield from _same(f"{theirs}mlp.c_proj", f"{mlp}.down")


def _same(theirs: str, ours: str) -> Iterator[Link]:
    """Yields weight and bias of a layer."""
    for kind in ("weight", "bias"):
        yield Link((f"{theirs}.{kind}",), (f"{ours}.{kind}",))
