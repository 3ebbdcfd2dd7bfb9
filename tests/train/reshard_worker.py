"""One rank of a run that goes on from the newest checkpoint to a given step, sharded by FSDP2."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import small_model
from test_gradients import batches_of

from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.train.checkpoint import Checkpoints
from multicoca.train.optim import Average, OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

folder, last = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
model = small_model(pooler="cascade").double()
engine = parallelize(model, ParallelConfig("fsdp"), torch.device("cpu"))
optimizers, average = build_optimizers(model, OptimConfig(lr=1e-2)), Average(model, 0.9)
checkpoints = Checkpoints(folder / "checkpoints", model, optimizers, average)
first = checkpoints.load_latest()[0]
assert first == last - 2
losses = []
for step in range(first, last):
    found = accumulate_gradients(engine, batches_of(rank, ranks), LossConfig(), key=(0, step))
    optimizer_step(list(model.parameters()), optimizers, [1e-2], 1.0)
    average.update(step)
    losses.append(float(sum(found.values())))
    checkpoints.save(step + 1, 0.0)
checkpoints.finish()
dist.barrier()
if rank == 0:
    torch.save(losses, folder / f"losses_{ranks}.pt")
dist.destroy_process_group()
