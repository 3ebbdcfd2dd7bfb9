"""Every optimizer takes the same steps on shards, in one group or two, as on whole parameters; also after a resume.

All is in fp64, Muon too, as it makes rounding large where gradients have a low rank.
"""

from pathlib import Path

import pytest
import torch
from conftest import small_model
from ranks import run_ranks
from test_gradients import batches_of

from multicoca.distributed.collectives import rank, world_size
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.train.checkpoint import Checkpoints
from multicoca.train.optim import OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

RANKS = 4
OPTIMIZERS = {
    "adamw": OptimConfig(weight_decay=0.1),
    "adafactor": OptimConfig(name="adafactor", weight_decay=0.1),
    "muon": OptimConfig(muon_lr=1e-2, weight_decay=0.1),
}


def take_steps(engine: Engine, optimizers, first: int, last: int) -> None:
    for step in range(first, last):
        accumulate_gradients(engine, batches_of(rank(), world_size()), LossConfig(), key=(step,))
        optimizer_step(list(engine.model.parameters()), optimizers, [1e-2] * len(optimizers), 1.0)


def sharded_steps(name: str, replicate: int, folder: Path) -> dict[str, torch.Tensor]:
    """Two steps, a checkpoint, and one more by another model that goes on from it; returns the whole weights."""
    for first, last in ((0, 2), (2, 3)):
        model = small_model(seed=first, pooler="cascade").double()
        engine = parallelize(model, ParallelConfig("fsdp", replicate=replicate), torch.device("cpu"))
        optimizers = build_optimizers(model, OPTIMIZERS[name], torch.float64)
        checkpoints = Checkpoints(folder, model, optimizers)
        assert checkpoints.load_latest()[0] == first
        take_steps(engine, optimizers, first, last)
        checkpoints.save(last, 0.0)
        checkpoints.finish()
    return {key: value.full_tensor() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    run_ranks(Path(__file__).with_name("optimizer_worker.py"), RANKS, str(folder), str(RANKS))
    return folder


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_shards_are_those_on_whole_parameters(sharded, name):
    model = small_model(pooler="cascade").double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizers = build_optimizers(model, OPTIMIZERS[name], torch.float64)
    take_steps(Engine(model, model), optimizers, 0, 3)
    for replicate in (1, RANKS // 2):
        found = torch.load(sharded / f"{name}_{replicate}.pt", weights_only=True)
        for key, value in model.state_dict().items():
            if name == "adafactor" and key.endswith("key_value.bias"):
                continue  # a bias of keys has no gradient but rounding, which this optimizer makes as large as any
            moved = (value - before[key]).norm()
            error = (found[key] - value).norm()
            assert error <= 1e-9 * moved + 1e-12, (replicate, key, float(error / moved))
