"""The point encoder: groups of neighbouring points become tokens, a transformer relates them.

A cloud is cut into groups around farthest-point centres; a small PointNet, shared by all groups, turns each
into a token; the centre's position is added through an MLP. LayerNorm stands where the paper has BatchNorm, so
that a cloud's tokens do not hang on the rest of its batch.

Source: Point-BERT (arXiv 2111.14819), section 3.1; sizes of Uni3D (arXiv 2310.06773) and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.modality import MAX_LAYERS, check_sizes
from multicoca.nn.block import SelfAttentionBlock
from multicoca.tokens import Tokens
from multicoca_points.grouping import farthest_point_sample, nearest_neighbors

_POSITION_HIDDEN = 128  # Point-BERT's released code
_INIT_STD = 0.02  # of the transformer: Point-BERT and ViT


class GroupEncoder(nn.Module):
    """A PointNet in two stages: each point alone, then each point beside its group's maximum.

    Args:
        widths: (a, b, c, d): points go to a, b; the maximum over the group joins them; then to c, d; maximum.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.enter = nn.Linear(6, first)
        self.enter_norm = nn.LayerNorm(first)
        self.point = nn.Linear(first, second)
        # one Linear on [group maximum, point], in two parts: the group's is computed once per group
        self.mix_group = nn.Linear(second, third)
        self.mix_point = nn.Linear(second, third, bias=False)
        self.mix_norm = nn.LayerNorm(third)
        self.leave = nn.Linear(third, fourth)

    def forward(self, points: Float[Tensor, "batch groups members 6"]) -> Float[Tensor, "batch groups width"]:
        """Returns one vector per group; repeated members change nothing."""
        features = self.point(F.relu(self.enter_norm(self.enter(points))))
        group = self.mix_group(features.amax(dim=2, keepdim=True))
        features = self.leave(F.relu(self.mix_norm(self.mix_point(features) + group)))
        return features.amax(dim=2)


class PointEncoder(nn.Module):
    """Point clouds to tokens. The defaults are Uni3D's small model.

    Args:
        width: size of the tokens.
        depth: transformer blocks.
        num_heads: attention heads; must divide the width.
        num_groups: tokens per cloud.
        group_size: points per token.
        group_widths: the four widths of the group's PointNet.
        mlp_ratio: hidden size of the blocks' MLPs in units of the width.
        patch_dropout: share of the groups that is left out in training (Uni3D trains with 0.5).
        position_frequencies: 0 is the papers' MLP on (x, y, z); n > 0 adds sin and cos of pi 2^i (x, y, z) for
            i < n, which tells near places apart (NeRF, arXiv 2003.08934, equation 4). Small models on few
            samples learn shapes much sooner with 4.
        offset_scale: multiplies the offsets from the centre; 1 is the papers' form. About 1 / (radius of a
            group) brings them to the size of the colours (PointNeXt, arXiv 2206.04670, section 3.2.1).

    Raises:
        ValueError: a size is out of range.
    """

    full_precision_inputs = ("xyz",)

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 512,
        group_size: int = 64,
        group_widths: Sequence[int] = (128, 256, 512, 512),
        mlp_ratio: float = 4.0,
        patch_dropout: float = 0.0,
        position_frequencies: int = 0,
        offset_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_heads=num_heads, num_groups=num_groups, group_size=group_size)
        check_sizes(least=0, most=MAX_LAYERS, depth=depth, position_frequencies=position_frequencies)
        if width % num_heads != 0:
            raise ValueError(f"width is {width} and num_heads {num_heads}; the width must be a multiple of num_heads")
        if len(group_widths) != 4:
            raise ValueError(
                f"group_widths is {tuple(group_widths)}; it must be four numbers, e.g. (128, 256, 512, 512)"
            )
        for group_width in group_widths:
            check_sizes(group_widths=group_width)
        if not 0 < mlp_ratio <= MAX_LAYERS:
            raise ValueError(f"mlp_ratio is {mlp_ratio}; it must lie in (0, {MAX_LAYERS}]")
        if not 0 <= patch_dropout < 1:
            raise ValueError(f"patch_dropout is {patch_dropout}; it must lie in [0, 1)")
        self.width = width
        self.num_groups = num_groups
        self.group_size = group_size
        self.patch_dropout = patch_dropout
        self.position_frequencies = position_frequencies
        self.offset_scale = offset_scale
        self.group_encoder = GroupEncoder(group_widths)
        self.project = nn.Linear(group_widths[-1], width)
        self.position = nn.Sequential(
            nn.Linear(3 + 6 * position_frequencies, _POSITION_HIDDEN), nn.GELU(), nn.Linear(_POSITION_HIDDEN, width)
        )
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(width, num_heads, int(mlp_ratio * width), causal=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Zero biases; truncated normals: 0.02 in the blocks, 1 / sqrt(fan in) in the small layers before them.

        With 0.02 in those, whose fan in starts at 3, positions would enter a hundredfold below the groups' content.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = _INIT_STD if name.startswith("blocks.") else 1 / math.sqrt(module.in_features)
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes clouds.

        Args:
            inputs: "xyz" [batch, points, 3], "rgb" [batch, points, 3], and optionally "mask" [batch, points], bool;
                each cloud must have a real point. Without a mask all points are real and at different places.

        Returns:
            `num_groups` tokens per cloud (less the dropped ones in training). The mask is False where a cloud had
            no further place for a group; there is none where every cloud must have had one.
        """
        centers, points, mask = self._group(inputs["xyz"], inputs["rgb"], inputs.get("mask"))
        if "mask" not in inputs and inputs["xyz"].shape[1] >= self.num_groups:
            mask = None
        places, dtype = self._place(centers), self.project.weight.dtype
        tokens = self.project(self.group_encoder(points.to(dtype))) + self.position(places.to(dtype))
        for block in self.blocks:
            tokens = block(tokens, mask)
        return Tokens(self.norm(tokens), mask)

    def _group(
        self,
        xyz: Float[Tensor, "batch points 3"],
        rgb: Float[Tensor, "batch points 3"],
        mask: Bool[Tensor, "batch points"] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns centres [batch, groups, 3], points [batch, groups, members, 6] around them, mask [batch, groups]."""
        chosen, real = farthest_point_sample(xyz, self.num_groups, mask)
        if self.training and self.patch_dropout > 0:  # groups do not see each other yet, so drop before the work
            kept = max(1, round(self.num_groups * (1 - self.patch_dropout)))
            score = torch.rand(real.shape, device=real.device).masked_fill(~real, -1.0)
            order = score.topk(kept, dim=1).indices
            chosen, real = chosen.gather(1, order), real.gather(1, order)
        rows = torch.arange(len(xyz), device=xyz.device)[:, None]
        centers = xyz[rows, chosen].float()
        members = nearest_neighbors(centers, xyz, self.group_size, mask)
        rows = rows[..., None]
        offsets = (xyz[rows, members].float() - centers[:, :, None]) * self.offset_scale
        return centers, torch.cat([offsets, rgb[rows, members].float()], dim=-1), real

    def _place(self, centers: Float[Tensor, "batch groups 3"]) -> Float[Tensor, "batch groups features"]:
        """Returns the centres, with sines and cosines when there are frequencies."""
        if self.position_frequencies == 0:
            return centers
        octaves = torch.arange(self.position_frequencies, device=centers.device)
        angles = (centers[..., None] * (torch.pi * 2.0**octaves)).flatten(-2)
        return torch.cat([centers, angles.sin(), angles.cos()], dim=-1)
