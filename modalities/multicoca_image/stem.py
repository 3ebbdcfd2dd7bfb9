"""A convolutional stem in the place of a vision transformer's patch embedding.

A few strided 3x3 convolutions and one linear layer instead of one large-stride convolution: small models learn
much faster for it. Normalisation is optional, and for the last layers only: on large maps it costs as much as the
convolutions on a CPU, and initialisation keeps the variance as well. It has the interface that timm's
VisionTransformer expects of its `embed_layer`.
Source: "Early Convolutions Help Transformers See Better", arXiv 2106.14881, section 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from multicoca.modality import check_sizes

_MOST_HALVINGS = 16  # of height and width


@dataclass(frozen=True)
class ConvStemConfig:
    """What a `ConvStem` looks like.

    Attributes:
        channels: of the 3x3 convolutions, each of which halves height and width; three of them make patches of
            8 px, four of 16 px.
        num_norms: how many of the convolutions, counted from the last, are followed by a LayerNorm.
    """

    channels: Sequence[int] = (16, 32, 64)
    num_norms: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # YAML gives a list
        if not self.channels:
            raise ValueError("the stem has no channels; give one positive number per layer")
        for count in self.channels:
            check_sizes(channels=count)
        check_sizes(most=_MOST_HALVINGS, **{"number of channels": len(self.channels)})
        if not 0 <= self.num_norms <= len(self.channels):
            raise ValueError(f"num_norms is {self.num_norms}; expected 0 to {len(self.channels)}, the number of layers")


class ConvStem(nn.Module):
    """Turns an image into patch embeddings through strided convolutions.

    Arguments other than `config` are those of `timm.layers.PatchEmbed`, which calls for them by these names.
    """

    def __init__(
        self,
        config: ConvStemConfig,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        strict_img_size: bool = True,
        output_fmt: str | None = None,
        **factory: torch.device | torch.dtype | None,
    ) -> None:
        """Builds the stem.

        Raises:
            ValueError: the patch size is not 2 to the power of the number of layers, or padding is asked for.
        """
        super().__init__()
        channels = config.channels
        self.patch_size = _pair(patch_size)
        expected = 2 ** len(channels)
        if self.patch_size != (expected, expected):
            raise ValueError(
                f"a stem of {len(channels)} layers with channels {channels} makes patches of {expected} px, but the "
                f"model's patch_size is {patch_size}. Set timm_options.patch_size or the number of channels"
            )
        if dynamic_img_pad:
            raise ValueError("the convolutional stem does not pad images; remove timm_options.dynamic_img_pad")
        self.strict_img_size = strict_img_size
        self.channels_last = output_fmt == "NHWC"
        self.set_input_size(img_size)
        layers: list[nn.Module] = []
        for index, (incoming, outgoing) in enumerate(itertools.pairwise((in_chans, *channels))):
            layers.append(HalvingConv(incoming, outgoing, bias, **factory))
            if index >= len(channels) - config.num_norms:
                layers.append(nn.LayerNorm(outgoing, **factory))
            layers.append(nn.GELU())
        self.layers = nn.Sequential(*layers, nn.Linear(channels[-1], embed_dim, bias=bias, **factory))
        self.init_weights()

    def init_weights(self) -> None:
        """Keeps the variance through the layers; timm calls this too. Source: He et al., arXiv 1502.01852."""
        *hidden, last = [layer for layer in self.layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
        for layer in hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
        for layer in (*hidden, last):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Changes the image size that the positions are made for.

        Raises:
            ValueError: another patch size is asked for.
        """
        if patch_size is not None and _pair(patch_size) != self.patch_size:
            raise ValueError(f"the stem's patch size is {self.patch_size} by its layers; it cannot become {patch_size}")
        if img_size is not None:
            self.img_size = _pair(img_size)
            self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Returns how many pixels make one patch."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) in patches of an image of the given size."""
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch *patches embedding"]:
        """Returns [batch, patches, width], or [batch, rows, columns, width] when positions are resized later."""
        features = pixels.permute(0, 2, 3, 1)  # channels last: each patch is a row of a matrix
        for layer in self.layers:
            features = layer(features)
        return features if self.channels_last else features.flatten(1, 2)


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of stride 2 on [batch, height, width, channels].

    On a CPU it is one matrix product over shifted slices: the backward pass of PyTorch's own is slow in bf16, and
    waits in busy loops that stall it when another process, such as a data worker, has the core.
    """

    def __init__(self, incoming: int, outgoing: int, bias: bool, **factory: torch.device | torch.dtype | None) -> None:
        super().__init__(incoming, outgoing, 3, stride=2, padding=1, bias=bias, **factory)

    def forward(
        self, features: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch half_height half_width outgoing"]:
        """Convolves; height and width must be even."""
        if features.device.type != "cpu":
            return super().forward(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return functional.linear(_Neighbors.apply(features), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class _Neighbors(torch.autograd.Function):
    """The 3x3 neighbours of every second place side by side, zeros beyond the border.

    Autograd's own backward pass through nine slices fills, copies and adds the whole map nine times; this one adds
    each slice in place, which halves the time of the convolutions.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, features: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch half_height half_width channels*9"]:
        ctx.shape = features.shape
        return torch.cat(_shifts(functional.pad(features, (0, 0, 1, 1, 1, 1))), dim=-1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        batch, height, width, channels = ctx.shape
        padded = gradient.new_zeros(batch, height + 2, width + 2, channels)
        for shift, own in zip(_shifts(padded), gradient.split(channels, dim=-1), strict=True):
            shift += own
        return padded[:, 1:-1, 1:-1]


def _shifts(padded: Tensor) -> list[Tensor]:
    """Returns views of a padded map, one for each place of the 3x3 window, row by row."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    return [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
