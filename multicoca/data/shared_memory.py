"""How many data workers fit into shared memory, through which their samples reach the main process.

Docker gives a container 64 MB of it by default. A worker that finds no room there dies or waits for ever, so fewer are
started, or none.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

PREFETCHED = 2  # batches of each worker that wait for the main process
_FOLDER = Path("/dev/shm")
_USABLE = 0.8  # of what is free; other programs use it, too


def fitting_workers(requested: int, batch_bytes: int) -> int:
    """Returns how many workers to start; a number below what was asked for is warned of.

    Args:
        requested: how many there should be.
        batch_bytes: of what a worker hands over at once.
    """
    if requested == 0 or batch_bytes == 0 or sys.platform != "linux" or not _FOLDER.is_dir():
        return requested
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))  # of this machine
    free = shutil.disk_usage(_FOLDER).free * _USABLE / ranks
    fitting = int(free / (batch_bytes * (PREFETCHED + 1)))  # one more is being written
    if fitting >= requested:
        return requested
    warnings.warn(
        f"{_FOLDER} has {free / _USABLE / 2**20:.1f} MiB free for each process, which is room for {fitting} of "
        f"{requested} data workers with batches of {batch_bytes / 2**20:.1f} MiB, so {fitting or 'none'} are started; "
        "make it larger (docker run --shm-size=8g), or the batches smaller",
        stacklevel=2,
    )
    return fitting


def bytes_of(parts: Mapping[str, Tensor] | Iterable[Tensor]) -> int:
    """Returns the size of tensors in memory."""
    tensors = parts.values() if isinstance(parts, Mapping) else parts
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
