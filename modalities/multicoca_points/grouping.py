"""Centres by farthest point sampling and their nearest neighbours, in plain torch, on any device, with masks.

Coordinates are kept as three separate rows (x, y, z), so that each step of the sampling is a few passes over
contiguous memory without a temporary. Nothing here depends on the padding: every distance is computed point by
point in float32, never through a matrix product, whose rounding changes with the shape.

Source: Qi et al., PointNet++ (arXiv 1706.02413), section 3.2.
"""

from __future__ import annotations

import functools
import subprocess
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# From 32768 elements on, torch splits an elementwise operation over threads (and max(dim) at any size, unlike
# argmax). Waking them costs more than the microseconds of such an operation, and milliseconds on a busy machine,
# so on the CPU the clouds go through the loop in pieces of half that size.
_CPU_PIECE = 16384

# How many distances are held at once. On a CPU: few enough for its caches, enough for 32 threads. On CUDA: an
# operation on them takes many times as long as its launch, and they are far below torch's limit of 2**31.
_CPU_TILE = 1 << 20
_TILE = 1 << 26
_INFINITY_BITS = 0x7F800000


@torch.no_grad()
def farthest_point_sample(
    xyz: Float[Tensor, "batch points 3"], num: int, mask: Bool[Tensor, "batch points"] | None = None
) -> tuple[Int[Tensor, "batch num"], Bool[Tensor, "batch num"]]:
    """Chooses points, each as far as possible from those chosen before.

    It starts at the point with the largest x + y + z: deterministic, the same for every order of the points and
    for every padding. Of equally far points the first wins. The distances have the same bits on every device, and so
    the indices are the same.

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
    axes = xyz.float().permute(2, 0, 1).contiguous()
    score = axes[0] + axes[1] + axes[2]
    nearest = torch.full_like(score, torch.inf)  # squared distance to the chosen points
    if mask is not None:
        axes = axes.masked_fill(~mask, 0.0)
        score = score.masked_fill(~mask, -torch.inf)
        nearest = nearest.masked_fill(~mask, -1.0)  # below every distance: padding is never the farthest
    fill = _cuda_kernel() if xyz.is_cuda else fill_farthest
    fill(axes, nearest, score.argmax(dim=1), indices, new)


@functools.cache
def _cuda_kernel() -> Callable[..., None]:
    """Returns the CUDA kernel that does the same as `fill_farthest`, or that function where the kernel cannot run."""
    try:
        from multicoca_points import farthest_cuda

        farthest_cuda.check_compiler()
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        warnings.warn(
            f"the kernel for farthest point sampling cannot run ({error}); the loop in its place is many times slower. "
            f"The kernel needs Triton, which comes with torch for CUDA on Linux, a C compiler and Python's headers",
            stacklevel=2,
        )
        return fill_farthest
    return farthest_cuda.fill_farthest


def fill_farthest(axes: Tensor, nearest: Tensor, first: Tensor, indices: Tensor, new: Tensor) -> None:
    """Chooses points of each cloud one after the other, writing to `indices`, `new` and `nearest`.

    Args:
        axes: coordinates [3, clouds, points]; padding must be finite.
        nearest: squared distances to the chosen points [clouds, points]: at first infinity, always -1 at padding.
        first: the point to start from in each cloud.
        indices: receives the chosen points.
        new: receives False where the cloud had no further place to offer.
    """
    x, y, z = axes
    squared, step = torch.empty_like(x), torch.empty_like(x)
    farthest = first[:, None]
    for i in range(indices.shape[1]):
        indices[:, i] = farthest[:, 0]
        new[:, i] = nearest.gather(1, farthest)[:, 0] > 0
        torch.sub(x, x.gather(1, farthest), out=squared)
        squared.mul_(squared)
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, farthest), out=step)
            squared.add_(step.mul_(step))
        torch.minimum(nearest, squared, out=nearest)
        farthest = nearest.argmax(dim=1, keepdim=True)


@torch.no_grad()
def nearest_neighbors(
    centers: Float[Tensor, "batch groups 3"],
    xyz: Float[Tensor, "batch points 3"],
    k: int,
    mask: Bool[Tensor, "batch points"] | None = None,
) -> Int[Tensor, "batch groups k"]:
    """Returns the indices of each centre's k nearest real points, nearest first; among equally near ones by index.

    In a cloud with fewer than k real points the nearest one fills the rest; padding is never chosen. At least one
    point of each cloud must be real.
    """
    batch, groups, _ = centers.shape
    points, found = xyz.shape[1], min(k, xyz.shape[1])
    center_axes = centers.float().permute(2, 0, 1)[..., None].contiguous()
    point_axes = xyz.float().permute(2, 0, 1)[:, :, None].contiguous()
    on_cpu = xyz.device.type == "cpu"
    tile = _CPU_TILE if on_cpu else _TILE
    select = _smallest_of_keys if on_cpu else _smallest_of_floats
    num_centers = max(1, min(groups, tile // points))
    num_clouds = max(1, tile // (points * num_centers))
    chosen = torch.empty(batch, groups, found, dtype=torch.long, device=xyz.device)
    for row in range(0, batch, num_clouds):
        rows = slice(row, row + num_clouds)
        for column in range(0, groups, num_centers):
            columns = slice(column, column + num_centers)
            squared = _squared_distances(center_axes[:, rows, columns], point_axes[:, rows])
            if mask is not None:
                squared.masked_fill_(~mask[rows, None], torch.inf)
            keys = select(squared, found)
            nearest = keys & 0xFFFFFFFF
            chosen[rows, columns] = torch.where(keys >> 32 == _INFINITY_BITS, nearest[..., :1], nearest)
    return torch.cat([chosen, chosen[..., :1].expand(-1, -1, k - found)], dim=-1)


def _squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    """Returns ((dx * dx) + dy * dy) + dz * dz, each product and each sum rounded: the same bits on every device.

    `addcmul` would save a pass, but whether it rounds the product depends on how torch was compiled.
    """
    squared = centers[0] - points[0]
    squared.mul_(squared)
    for center, point in zip(centers[1:], points[1:], strict=True):
        step = center - point
        squared.add_(step.mul_(step))
    return squared


def _keys(squared: Tensor, indices: Tensor) -> Tensor:
    """Returns integers in the order of (distance, index): as integers, the bits of floats >= 0 keep their order."""
    return squared.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(indices)


def _smallest_of_keys(squared: Tensor, k: int) -> Tensor:
    """Returns the k smallest keys in order. On a CPU, topk may choose any of equal elements, so there are none."""
    keys = _keys(squared, torch.arange(squared.shape[-1], device=squared.device))
    return keys.topk(k, dim=-1, largest=False).values


def _smallest_of_floats(squared: Tensor, k: int) -> Tensor:
    """Does the same on CUDA, where topk takes the first of equal elements, so that it need not search 64 bits.

    Source: both kernels named gatherTopK in PyTorch's aten/src/ATen/native/cuda/TensorTopK.cu.
    """
    values, indices = squared.topk(k, dim=-1, largest=False, sorted=False)
    return _keys(values, indices).sort(dim=-1).values
