"""Rank 0 of 64 fake ones: counts the collectives of a step of Muon, in one copy of the model and in 8."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from multicoca.train.muon import Muon


def collectives(mesh, num_matrices, optimizer_of) -> int:
    layers = (nn.Linear(8, 70 + number % 3, bias=False) for number in range(num_matrices))
    model = fully_shard(nn.Sequential(*layers), mesh=mesh)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer = optimizer_of([{"params": list(model.parameters())}])
    with CommDebugMode() as counted:
        optimizer.step()
    return counted.get_total_counts()


dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
for mesh in (
    init_device_mesh("cpu", (64,), mesh_dim_names=("shard",)),
    init_device_mesh("cpu", (8, 8), mesh_dim_names=("replicate", "shard")),
):
    assert collectives(mesh, 3, lambda groups: torch.optim.Muon(groups)) > 3 * 10  # the old way, as counted here
    for dtype in (torch.bfloat16, torch.float32):
        for num_matrices in (1, 3, 70):
            count = collectives(mesh, num_matrices, lambda groups, dtype=dtype: Muon(groups, 0.02, dtype))
            batches = math.ceil(num_matrices / mesh.size(mesh.ndim - 1))
            assert count == 2 * batches <= 2 * num_matrices, (mesh, num_matrices, count)
dist.destroy_process_group()
