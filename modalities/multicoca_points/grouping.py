"""Centres by farthest point sampling and their nearest neighbours, in plain torch, on any device, with masks.

Coordinates are kept as three separate rows (x, y, z), so that each step of the sampling is a few passes over
contiguous memory without a temporary. Nothing here depends on the padding: every distance is computed point by
point in float32, never through a matrix product, whose rounding changes with the shape.

Source: Qi et al., PointNet++ (arXiv 1706.02413), section 3.2.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# From 32768 elements on, torch splits an elementwise operation over threads (and max(dim) at any size, unlike
# argmax). Waking them costs more than the microseconds of such an operation, and milliseconds on a busy machine,
# so on the CPU the clouds go through the loop in pieces of half that size.
_CPU_PIECE = 16384


@torch.no_grad()
def farthest_point_sample(
    xyz: Float[Tensor, "batch points 3"], num: int, mask: Bool[Tensor, "batch points"] | None = None
) -> tuple[Int[Tensor, "batch num"], Bool[Tensor, "batch num"]]:
    """Chooses points, each as far as possible from those chosen before.

    It starts at the point with the largest x + y + z: deterministic, the same for every order of the points and
    for every padding. Of equally far points the first wins.

    Args:
        xyz: positions; what they hold at padding does not matter.
        num: how many points to choose, at least 1.
        mask: True marks a real point; None means that all are real.

    Returns:
        (indices, new): `new` is False where the cloud had no further place to offer, because it has fewer than
        `num` points or they coincide; such an index repeats one of the real points.
    """
    batch, points, _ = xyz.shape
    indices = torch.empty(batch, num, dtype=torch.long, device=xyz.device)
    new = torch.empty(batch, num, dtype=torch.bool, device=xyz.device)
    piece = max(1, _CPU_PIECE // points) if xyz.device.type == "cpu" else batch
    for start in range(0, batch, piece):
        rows = slice(start, start + piece)
        _sample_piece(xyz[rows], None if mask is None else mask[rows], indices[rows], new[rows])
    return indices, new


def _sample_piece(xyz: Tensor, mask: Tensor | None, indices: Tensor, new: Tensor) -> None:
    """Fills `indices` and `new` for some clouds."""
    x, y, z = xyz.float().permute(2, 0, 1).contiguous()
    score = x + y + z
    nearest = torch.full_like(x, torch.inf)  # squared distance to the chosen points
    if mask is not None:
        x, y, z = (axis.masked_fill(~mask, 0.0) for axis in (x, y, z))
        score = score.masked_fill(~mask, -torch.inf)
        nearest = nearest.masked_fill(~mask, -1.0)  # below every distance: padding is never the farthest
    squared, step = torch.empty_like(x), torch.empty_like(x)
    farthest = score.argmax(dim=1, keepdim=True)
    for i in range(indices.shape[1]):
        indices[:, i] = farthest[:, 0]
        new[:, i] = nearest.gather(1, farthest)[:, 0] > 0
        torch.sub(x, x.gather(1, farthest), out=squared)
        squared.mul_(squared)
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, farthest), out=step)
            squared.addcmul_(step, step)
        torch.minimum(nearest, squared, out=nearest)
        farthest = nearest.argmax(dim=1, keepdim=True)


@torch.no_grad()
def nearest_neighbors(
    centers: Float[Tensor, "batch groups 3"],
    xyz: Float[Tensor, "batch points 3"],
    k: int,
    mask: Bool[Tensor, "batch points"] | None = None,
) -> Int[Tensor, "batch groups k"]:
    """Returns the indices of each centre's k nearest real points, nearest first.

    In a cloud with fewer than k real points the nearest one fills the rest; padding is never chosen. At least one
    point of each cloud must be real.
    """
    distances = torch.cdist(centers.float(), xyz.float(), compute_mode="donot_use_mm_for_euclid_dist")
    if mask is not None:
        distances = distances.masked_fill_(~mask[:, None], torch.inf)
    found = min(k, xyz.shape[1])
    distances, indices = distances.topk(found, dim=-1, largest=False)
    nearest = indices[..., :1]
    if mask is not None:
        indices = torch.where(distances.isinf(), nearest, indices)
    return torch.cat([indices, nearest.expand(-1, -1, k - found)], dim=-1)
