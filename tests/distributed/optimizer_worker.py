"""One rank of test_optimizers.py: some steps of every optimizer on shards, with a checkpoint in between."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_optimizers import OPTIMIZERS, sharded_steps

folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
for name in OPTIMIZERS:
    for replicate in {1, ranks // 2}:
        found = sharded_steps(name, replicate, folder / f"{name}_{replicate}")
        if dist.get_rank() == 0:
            torch.save(found, folder / f"{name}_{replicate}.pt")
dist.destroy_process_group()
