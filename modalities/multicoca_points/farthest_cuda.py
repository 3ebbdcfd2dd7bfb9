"""Farthest point sampling on CUDA in one kernel, where a loop in torch launches about fifteen for each chosen point.

Each cloud has a program (a block of threads) that chooses all its points. The indices are those of
`grouping.fill_farthest`, bit for bit: products and sums are rounded one by one, which is what
`enable_fp_fusion=False` is for, and of equally far points the first wins. Triton comes with torch for CUDA on Linux;
nothing else imports this module.

Source: the rule is PointNet++'s (arXiv 1706.02413), section 3.2. Triton needs a barrier before a program reads what
it has written: https://github.com/triton-lang/triton/issues/10924.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_LANES = 4096  # points that a program handles at a time
_LANES_PER_WARP = 128  # 4 floats per thread: one load of 16 bytes
_MOST_WARPS = 16  # AMD's blocks have at most 1024 threads, 64 in a warp
# a fused product and sum is rounded once; a pipeline could read `nearest` before it is written
OPTIONS = {"enable_fp_fusion": False, "num_stages": 1}
_LARGEST_INDEX: tl.constexpr = tl.constexpr(2**31 - 1)


def check_compiler() -> None:
    """Makes Triton build its link to the GPU's driver, which is where a machine without a compiler fails.

    Raises:
        RuntimeError: there is no C compiler, or no GPU.
        subprocess.CalledProcessError: the compiler fails, e.g. because Python's headers are missing.
    """
    triton.runtime.driver.active.get_current_device()


def fill_farthest(axes: Tensor, nearest: Tensor, first: Tensor, indices: Tensor, new: Tensor) -> None:
    """Does the same as `grouping.fill_farthest`; all tensors must be contiguous."""
    _, batch, points = axes.shape
    lanes = min(triton.next_power_of_2(points), _MOST_LANES)
    with torch.cuda.device_of(axes):
        _fill_kernel[(batch,)](
            axes, nearest, first, indices, new, points, indices.shape[1], lanes,
            num_warps=min(max(lanes // _LANES_PER_WARP, 1), _MOST_WARPS), **OPTIONS,
        )  # fmt: skip


@triton.jit
@no_type_check  # a checker would hide the source from Triton
def _fill_kernel(axes, nearest, first, indices, new, points, num, LANES: tl.constexpr):
    cloud = tl.program_id(0).to(tl.int64)
    x = axes + cloud * points
    y = x + tl.num_programs(0).to(tl.int64) * points
    z = y + tl.num_programs(0).to(tl.int64) * points
    nearest += cloud * points
    indices += cloud * num
    new += cloud * num
    farthest = tl.load(first + cloud).to(tl.int32)
    distance = float("inf")
    for i in range(num):
        tl.store(indices + i, farthest.to(tl.int64))
        tl.store(new + i, distance > 0)
        center_x = tl.load(x + farthest)
        center_y = tl.load(y + farthest)
        center_z = tl.load(z + farthest)
        best = tl.full((LANES,), -float("inf"), tl.float32)
        place = tl.zeros((LANES,), tl.int32)
        for start in range(0, points, LANES):
            here = start + tl.arange(0, LANES)
            inside = here < points
            dx = tl.load(x + here, mask=inside, other=0.0) - center_x
            dy = tl.load(y + here, mask=inside, other=0.0) - center_y
            dz = tl.load(z + here, mask=inside, other=0.0) - center_z
            squared = dx * dx + dy * dy + dz * dz
            # -inf is below padding, which is -1: what lies outside the row is never chosen
            closest = tl.minimum(tl.load(nearest + here, mask=inside, other=-float("inf")), squared)
            tl.store(nearest + here, closest, mask=inside)
            place = tl.where(closest > best, here, place)
            best = tl.maximum(best, closest)
        distance = tl.max(best, axis=0)
        farthest = tl.min(tl.where(best == distance, place, _LARGEST_INDEX), axis=0)
        tl.debug_barrier()  # in the next step other threads may read what this one wrote to `nearest`
