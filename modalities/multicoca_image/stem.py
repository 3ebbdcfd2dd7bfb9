"""A convolutional stem in the place of a vision transformer's patch embedding.

A few strided 3x3 convolutions and one 1x1 convolution instead of one large-stride convolution: small models learn
much faster for it. Without normalisation layers, which cost as much as the convolutions on a CPU; the variance is
kept by initialisation instead. It has the interface that timm's VisionTransformer expects of its `embed_layer`.
Source: "Early Convolutions Help Transformers See Better", arXiv 2106.14881, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvStemConfig:
    """What a `ConvStem` looks like.

    Attributes:
        channels: of the 3x3 convolutions, each of which halves height and width; three of them make patches of
            8 px, four of 16 px.
    """

    channels: Sequence[int] = (16, 32, 64)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # YAML gives a list
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels of the stem are {self.channels}; give one positive number per layer")


class ConvStem(nn.Module):
    """Turns an image into patch embeddings through strided convolutions.

    Arguments other than `channels` are those of `timm.layers.PatchEmbed`, which calls for them by these names.
    """

    def __init__(
        self,
        channels: Sequence[int],
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
        for incoming, outgoing in zip((in_chans, *channels), channels, strict=False):
            layers += [nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1, bias=bias, **factory), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], embed_dim, 1, bias=bias, **factory))
        self.init_weights()

    def init_weights(self) -> None:
        """Keeps the variance through the layers; timm calls this too. Source: He et al., arXiv 1502.01852."""
        *hidden, last = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
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
        features = self.layers(pixels)
        if self.channels_last:
            return features.permute(0, 2, 3, 1).contiguous()
        return features.flatten(2).transpose(1, 2)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
