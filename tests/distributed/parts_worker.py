"""One of two processes: every case of tests/train/test_parts.py by both engines, beside one process alone."""

import sys

import torch
import torch.distributed as dist
from test_parts import CASES, batches_of, prepared

from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.train.step import accumulate_gradients

folder = sys.argv[1]
dist.init_process_group("gloo")
found = {}
for case in CASES:
    for strategy in ("ddp", "fsdp"):
        model, loss, modalities, dtype = prepared(case)
        engine = parallelize(model, ParallelConfig(strategy), torch.device("cpu"))
        accumulate_gradients(engine, batches_of(modalities, dtype, dist.get_rank(), 2), loss)
        found[case, strategy] = {
            name: p.grad.full_tensor() if engine.is_sharded and p.grad is not None else p.grad
            for name, p in model.named_parameters()
        }
torch.save(found, f"{folder}/{dist.get_rank()}.pt")
dist.destroy_process_group()
