"""One of two ranks of tests/train/test_checkpoints.py: rank 0 alone copies and writes."""

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from conftest import small_model

from multicoca.distributed.collectives import rank, wait_for_all
from multicoca.distributed.setup import distributed
from multicoca.train.checkpoint import Checkpoints
from multicoca.train.optim import OptimConfig, build_optimizers

calls, plain = [], dcp.async_save


def counted(*arguments, **options):
    calls.append(rank())
    return plain(*arguments, **options)


dcp.async_save = counted
with distributed(torch.device("cpu")):
    model = small_model()
    checkpoints = Checkpoints(Path(sys.argv[1]), model, build_optimizers(model, OptimConfig()))
    checkpoints.save(3, 1.0)
    assert (checkpoints.pause_s > 0) == (rank() == 0)
    checkpoints.finish()
    wait_for_all()
    assert calls == [0] * (rank() == 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for value in model.parameters():
        value.data.zero_()
    assert checkpoints.load_latest()[:2] == (3, 1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
