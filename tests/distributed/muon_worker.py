"""One rank of test_muon.py: steps on shards; saves the whole weights and the optimizer's state."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_muon import DTYPES, groups, matrices, take_steps
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from multicoca.train.muon import Muon

folder, sizes = Path(sys.argv[1]), tuple(map(int, sys.argv[2:]))
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])
for dtype in DTYPES:
    model = fully_shard(matrices(), mesh=mesh)
    placements = next(model.parameters()).placements
    optimizer = Muon(groups(model), 0.02, dtype)
    take_steps(model, optimizer, lambda gradient, placements=placements: distribute_tensor(gradient, mesh, placements))
    for weight, state in optimizer.state.items():
        buffer = state["momentum_buffer"]
        assert (buffer.device_mesh, buffer.placements) == (weight.device_mesh, weight.placements)
    weights = [weight.full_tensor() for weight in model.parameters()]
    states = optimizer.state_dict()["state"]
    states = {number: {key: value.full_tensor() for key, value in state.items()} for number, state in states.items()}
    if dist.get_rank() == 0:
        torch.save((weights, states), folder / f"{dtype}.pt")
dist.destroy_process_group()
