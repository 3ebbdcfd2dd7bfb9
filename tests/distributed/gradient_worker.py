"""One rank of test_gradients.py: writes its gradients after the reduction."""

import json
import sys
from pathlib import Path

import torch
from test_gradients import gradients

from multicoca.distributed.collectives import rank, sum_over_ranks, world_size
from multicoca.distributed.setup import distributed

folder = Path(sys.argv[1])
with distributed(torch.device("cpu")):
    torch.save(gradients(rank(), world_size()), folder / f"{rank()}.pt")
    total = sum_over_ranks(torch.tensor(float(rank() == 1)))  # what only one rank knows, all learn
    if rank() == 0:
        (folder / "stop.json").write_text(json.dumps([world_size(), total.item() > 0]))
