"""One rank of test_gradients.py: writes its gradients after the reduction, for every case."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_gradients import cases, gradients

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.save(
    {label: gradients(case, rank, world_size) for label, case in cases(world_size).items()}, folder / f"{rank}.pt"
)
dist.destroy_process_group()
