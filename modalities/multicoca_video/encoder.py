"""A video encoder around an injected frame encoder: every frame is encoded alone, time is added to the tokens.

The decision: the tokens of all frames are handed to the core as one sequence (VideoCoCa, arXiv 2212.04979: frame
tokens flattened, the same poolers read them), so an image encoder becomes a video encoder without new blocks. The
frame encoder may be the very module of the image modality (weights shared) or its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.modality import MAX_LAYERS, Resizable, check_sizes
from multicoca.nn.block import SelfAttentionBlock
from multicoca.tokens import Tokens

_INSIDE = "frame_encoder."


class VideoEncoder(nn.Module):
    """Encodes clips frame by frame, see `multicoca.modality.Encoder`."""

    def __init__(
        self,
        frame_encoder: nn.Module,
        num_frames: int = 8,
        pooling: str = "tokens",
        position: str = "sincos",
        mixing_blocks: int = 0,
        mixing_heads: int = 4,
    ) -> None:
        """Wraps a frame encoder.

        Args:
            frame_encoder: an encoder from {"pixels": [frames, 3, height, width]} to `Tokens`.
            num_frames: how many positions in time are learned; clips of another length interpolate between them.
            pooling: "tokens" keeps the tokens of all frames and adds the position in time; "mean" averages each
                token over the frames and is blind to their order.
            position: where the learned positions in time start: "sincos" from sines and cosines, "zeros" from nothing,
                so that an image model is a video model before any training.
            mixing_blocks: transformer blocks over the pooled tokens of all frames, so that what changes between frames
                is seen before the core; VideoCoCa has none.
            mixing_heads: their attention heads.

        Raises:
            ValueError: a size is out of range, or `pooling` or `position` is something else.
        """
        super().__init__()
        check_sizes(num_frames=num_frames, mixing_heads=mixing_heads)
        check_sizes(least=0, most=MAX_LAYERS, mixing_blocks=mixing_blocks)
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling is '{pooling}'; expected one of {sorted(_POOLINGS)}")
        if position not in _POSITIONS:
            raise ValueError(f"position is '{position}'; expected one of {sorted(_POSITIONS)}")
        self.frame_encoder = frame_encoder
        self.width: int = frame_encoder.width
        self.pooling = _POOLINGS[pooling](_POSITIONS[position](num_frames, self.width))
        self.mixing = nn.ModuleList(
            SelfAttentionBlock(self.width, mixing_heads, 2 * self.width, causal=False) for _ in range(mixing_blocks)
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the frame encoder."""
        return self.frame_encoder.blocks

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights of this encoder for clips of another length or size.

        Positions in time are stretched as they are for a clip of another length than the learned one.
        """
        resized = dict(weights)
        inside = {key.removeprefix(_INSIDE): value for key, value in weights.items() if key.startswith(_INSIDE)}
        if inside and isinstance(self.frame_encoder, Resizable):
            resized.update({_INSIDE + key: value for key, value in self.frame_encoder.resized(inside).items()})
        table = weights.get("pooling.position")
        if table is not None and isinstance(self.pooling, TemporalTokens):
            resized["pooling.position"] = stretched(table, torch.ones(1, len(self.pooling.position), dtype=torch.bool))[
                0
            ]
        return resized

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes {"frames": float [batch, frames, 3, height, width], "mask": bool [batch, frames]}.

        Without a mask all frames are real.

        Returns:
            With "tokens": [batch, frames * tokens, width], frame after frame, grid (frames, height, width). With
            "mean": [batch, tokens, width] and the grid of a frame. The grid is None where the frame encoder has none.
        """
        frames, mask = inputs["frames"], inputs.get("mask")
        batch, num_frames = frames.shape[:2]
        encoded = self.frame_encoder({"pixels": frames.flatten(0, 1)})
        values = encoded.values.unflatten(0, (batch, num_frames))  # [batch, frames, tokens, width]
        real = None if mask is None else mask[:, :, None].expand(values.shape[:3])
        if encoded.mask is not None:
            of_frames = encoded.mask.unflatten(0, (batch, num_frames))
            real = of_frames if real is None else real & of_frames
        tokens = self.pooling(values, real, mask, encoded.grid)
        for block in self.mixing:
            tokens = tokens.with_values(block(tokens.values, tokens.mask))
        return tokens


class TemporalTokens(nn.Module):
    """Adds a learned position in time to each frame's tokens and lays the frames one after the other."""

    def __init__(self, position: Float[Tensor, "frames width"]) -> None:
        super().__init__()
        self.position = nn.Parameter(position)

    def forward(
        self,
        values: Float[Tensor, "batch frames tokens width"],
        real: Bool[Tensor, "batch frames tokens"] | None,
        mask: Bool[Tensor, "batch frames"] | None,
        grid: tuple[int, ...] | None,
    ) -> Tokens:
        """Joins the frames; `real` marks tokens, `mask` frames, None all of them."""
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        values = values + stretched(self.position, mask).to(values.dtype)[:, :, None]
        grid = None if grid is None else (values.shape[1], *grid)
        if real is None:
            return Tokens(values.flatten(1, 2), grid=grid)
        return Tokens(values.masked_fill(~real[..., None], 0.0).flatten(1, 2), real.flatten(1, 2), grid)


def stretched(
    table: Float[Tensor, "positions width"], mask: Bool[Tensor, "batch frames"]
) -> Float[Tensor, "batch frames width"]:
    """Stretches learned positions over each clip's own real frames, so that padding changes nothing."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    place = (mask.cumsum(dim=1) - 0.5) / count * len(table) - 0.5
    place = place.clamp(0, len(table) - 1)
    # rounding at exact places: a clip of the learned length gets the learned positions themselves
    before = (place + 1e-4).floor()
    share = (place - before).clamp(min=0)[..., None]
    before = before.long()
    after = (before + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[before], table[after], share.to(table.dtype))


class FrameMean(nn.Module):
    """Averages each token over the frames in which it is real. Holds no parameters."""

    def __init__(self, position: Float[Tensor, "frames width"]) -> None:
        super().__init__()  # the same signature for both; a mean has no place for positions

    def forward(
        self,
        values: Float[Tensor, "batch frames tokens width"],
        real: Bool[Tensor, "batch frames tokens"] | None,
        mask: Bool[Tensor, "batch frames"] | None,
        grid: tuple[int, ...] | None,
    ) -> Tokens:
        """Averages over the frames; a token that is real in none of them stays masked."""
        if real is None:
            return Tokens(values.mean(dim=1), grid=grid)
        total = values.masked_fill(~real[..., None], 0.0).sum(dim=1)
        count = real.sum(dim=1)
        return Tokens(total / count.clamp(min=1)[..., None], count > 0, grid)


_POOLINGS: dict[str, type[nn.Module]] = {"tokens": TemporalTokens, "mean": FrameMean}


def sine_cosine(num_positions: int, width: int) -> Float[Tensor, "positions width"]:
    """Returns sine-cosine positions: the first half sines, the second cosines, wavelengths from 2 pi to 20000 pi.

    Source: Vaswani et al. 2017, section 3.5.
    """
    half = (width + 1) // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].float()


_POSITIONS: dict[str, Callable[[int, int], Tensor]] = {"sincos": sine_cosine, "zeros": torch.zeros}
