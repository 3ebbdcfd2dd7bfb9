"""One rank of test_inference.py: writes what a model in shards says of this rank's items, before and after a step."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_gradients import batches_of
from test_inference import answers, outspoken

from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.train.optim import Average, OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
model = outspoken()
engine = parallelize(model, ParallelConfig("fsdp"), torch.device("cpu"))
optimizers, average = build_optimizers(model, OptimConfig(lr=1e-2)), Average(model, 0.5)
found = {}
for step in range(2):
    model.eval()
    found[f"step {step}"] = answers(model, rank)
    with average.in_place():
        found[f"average {step}"] = answers(model, rank)
    model.train()
    accumulate_gradients(engine, batches_of(rank, 2), LossConfig(), key=(step,))
    optimizer_step(list(model.parameters()), optimizers, [1e-2], 1.0)
    average.update(step)
torch.save(found, folder / f"{rank}.pt")
dist.destroy_process_group()
