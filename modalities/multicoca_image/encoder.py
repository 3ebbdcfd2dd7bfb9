"""Any vision transformer of timm as an image encoder: all of its tokens, none of its heads.

timm builds the model, resizes its position embeddings and reads foreign checkpoints; this file takes off what CLIP,
SigLIP and EVA pool with, and adds what small models need to learn quickly (a convolutional stem, sine-cosine
positions) and the contract.
Source: CoCa, arXiv 2205.01917, section 3.2: all encoder tokens go to the poolers.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multicoca.modality import check_sizes, require
from multicoca.tokens import Tokens
from multicoca_image.stem import ConvStem, ConvStemConfig
from multicoca_image.timm_models import MAX_SIDE_PX, create_model, load_strictly, published_settings, read_checkpoint

_VIT_MODULES = ("vision_transformer", "eva", "deit")  # families of timm with .blocks, .patch_embed and prefix tokens
_HEADS = ("head.", "head_dist.", "attn_pool.", "fc_norm.")  # what a file may have and an encoder never needs


class TimmEncoder(nn.Module):
    """A timm vision transformer, see `multicoca.modality.Encoder`."""

    def __init__(
        self,
        name: str,
        image_size_px: int | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        stem: ConvStemConfig | str = "patch",
        position: str = "learned",
        attention: str = "fused",
        timm_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Builds the model and loads its weights.

        Args:
            name: a timm name with an optional tag, e.g. "vit_base_patch16_224" or "vit_base_patch16_224.augreg_in21k".
            image_size_px: height and width of the images; None keeps the named model's own. Other sizes are
                accepted at run time with timm_options {"dynamic_img_size": true}.
            pretrained: download the weights that timm lists under the name.
            checkpoint: a local file of weights instead, .safetensors or a torch file without pickled objects.
            stem: "patch" for the model's own patch embedding, or a convolutional stem.
            position: "learned" starts as timm does (normal, 0.02), "sincos" starts from sines and cosines and is
                learned on, "sincos_fixed" stays there.
            attention: "plain" avoids PyTorch's fused kernel, whose backward pass on a CPU takes several times as
                long for short sequences; "fused" is right on a GPU.
            timm_options: passed on to `timm.create_model`, e.g. {"depth": 4, "patch_size": 8}.

        Raises:
            ValueError: the name is not that of a vision transformer in timm, the settings contradict each other,
                or the weights cannot be had or do not fit the model.
            ImportError: timm is not installed.
        """
        super().__init__()
        _check_settings(name, pretrained, checkpoint, stem, position, attention)
        options = dict(timm_options or {})
        if image_size_px is not None:
            check_sizes(most=MAX_SIDE_PX, image_size_px=image_size_px)
            options["img_size"] = image_size_px
        if isinstance(stem, ConvStemConfig):
            options["embed_layer"] = partial(ConvStem, stem)
        if not pretrained:  # the pooling belongs to the published weights; without them it need not be built
            options.setdefault("global_pool", "")
        model = create_model(name, pretrained, num_classes=0, **options)
        _remove_pooling(model)
        model.blocks = _BlockList(model.blocks)
        if position != "learned":
            _fill_sine_cosine(model, name, fixed=position == "sincos_fixed")
        if attention == "plain":
            _use_plain_attention(model, name)
        if checkpoint is not None:
            _load_checkpoint(model, Path(checkpoint))
        self.model = model
        self.width: int = model.embed_dim
        self._pads = bool(options.get("dynamic_img_pad", False))

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.model.blocks

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes {"pixels": float [batch, 3, height, width]}.

        Returns:
            The class and register tokens, if the model has any, then the patches row by row; all are real. `grid`
            is (height, width) in patches when there are only patches, else None.

        Raises:
            ValueError: the image size is not one that the model takes.
        """
        pixels = inputs["pixels"]
        height, width = pixels.shape[-2:]
        self._check_size(height, width)
        values = self.model.forward_features(pixels)
        grid = tuple(self.model.patch_embed.dynamic_feat_size((height, width)))
        return Tokens(values, grid=grid if values.shape[1] == grid[0] * grid[1] else None)

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights of this model at another image size with the position table resampled to this one's grid."""
        table, own = weights.get("model.pos_embed"), self.model.pos_embed
        if table is None or own is None or table.shape == own.shape:
            return dict(weights)
        prefix = 0 if getattr(self.model, "no_embed_class", False) else self.model.num_prefix_tokens
        layers = importlib.import_module("timm.layers")
        grid = list(self.model.patch_embed.grid_size)
        return {**weights, "model.pos_embed": layers.resample_abs_pos_embed(table, grid, num_prefix_tokens=prefix)}

    def _check_size(self, height: int, width: int) -> None:
        expected, patch = self.model.patch_embed.img_size, self.model.patch_embed.patch_size
        if not self.model.dynamic_img_size and (height, width) != tuple(expected):
            raise ValueError(
                f"the image is {height} x {width} px, the encoder was built for {expected[0]} x {expected[1]}. Set "
                "image_size_px and the processor's size_px to the same, or timm_options.dynamic_img_size to true"
            )
        if not self._pads and (height % patch[0] or width % patch[1]):
            raise ValueError(
                f"the image is {height} x {width} px; both must be multiples of the patch size, {patch[0]} x {patch[1]}"
            )


class _BlockList(nn.ModuleList):
    """A list of blocks that can be called in turn, as timm calls its `nn.Sequential`; parameter names are equal."""

    def forward(self, values: Tensor) -> Tensor:
        for block in self:
            values = block(values)
        return values


def _check_settings(
    name: str, pretrained: bool, checkpoint: str | None, stem: ConvStemConfig | str, position: str, attention: str
) -> None:
    """Raises ValueError for unknown words and for settings that would undo each other."""
    choices = {
        "position": (position, ("learned", "sincos", "sincos_fixed")),
        "attention": (attention, ("fused", "plain")),
    }
    for setting, (got, valid) in choices.items():
        if got not in valid:
            raise ValueError(f"{setting} is '{got}'; choose one of {', '.join(valid)}")
    if not isinstance(stem, ConvStemConfig) and stem != "patch":
        raise ValueError(f"stem is {stem!r}; give 'patch' or a multicoca_image.ConvStemConfig")
    if pretrained and checkpoint is not None:
        raise ValueError("pretrained and checkpoint both bring weights; set one of them")
    if pretrained and (stem != "patch" or position != "learned"):
        raise ValueError(
            "pretrained weights come with their own patch embedding and positions; set stem to 'patch' and position to "
            "'learned', or pretrained to false"
        )
    timm = require("timm", "image")
    if timm.models.is_model_in_modules(name, _VIT_MODULES):
        published_settings(name)  # raises for an unknown tag
        return
    valid = sorted(set().union(*(timm.list_models(module=module) for module in _VIT_MODULES)))
    if timm.is_model(name):
        problem = f"timm's '{name}' is not a vision transformer, so it has no sequence of tokens and blocks"
    else:
        problem = f"timm {timm.__version__} has no model '{name}'"
    near = difflib.get_close_matches(name, valid, n=4, cutoff=0.5) or ["vit_base_patch16_224"]
    raise ValueError(
        f"{problem}. Near names: {', '.join(near)}. All {len(valid)}: timm.list_models(module='vision_transformer'), "
        "likewise 'eva' and 'deit'"
    )


def _use_plain_attention(model: nn.Module, name: str) -> None:
    switched = [module for module in model.blocks.modules() if "fused_attn" in vars(module)]
    if not switched:
        raise ValueError(f"the blocks of '{name}' do not let their attention be chosen; set attention to 'fused'")
    for module in switched:
        module.fused_attn = False


def _fill_sine_cosine(model: nn.Module, name: str, fixed: bool) -> None:
    """Writes 2-D sines and cosines over the patches' positions; those of class and register tokens become zero.

    Source: MoCo v3, arXiv 2104.02057; timm's implementation.
    """
    if model.pos_embed is None:
        raise ValueError(f"'{name}' has no position table (it rotates instead); set position to 'learned'")
    if model.embed_dim % 4 != 0:
        raise ValueError(f"sine-cosine positions need a width that 4 divides; '{name}' has {model.embed_dim}")
    layers = importlib.import_module("timm.layers")
    table = layers.build_sincos2d_pos_embed(list(model.patch_embed.grid_size), dim=model.embed_dim)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, -len(table) :] = table
    model.pos_embed.requires_grad_(not fixed)


def _remove_pooling(model: nn.Module) -> None:
    """Leaves what makes tokens. A last norm that timm applies after pooling, as in EVA-02, comes to every token."""
    model.reset_classifier(0, "")
    if isinstance(model.norm, nn.Identity):
        model.norm = model.fc_norm
    model.fc_norm = nn.Identity()


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    """Raises ValueError if the weights cannot be read or do not fit."""
    weights = read_checkpoint(path, model)
    if "norm.weight" not in weights:  # see _remove_pooling
        weights = {
            key.replace("fc_norm.", "norm.") if key.startswith("fc_norm.") else key: weights[key] for key in weights
        }
    load_strictly(model, weights, path, _HEADS)
