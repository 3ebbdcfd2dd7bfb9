"""Meshes of ranks: sizes that fit, and every experiment on 64 ranks of which only one is real."""

from pathlib import Path

import pytest
import torch
from conftest import small_model
from ranks import run_ranks

from multicoca.distributed.parallelize import ParallelConfig, mesh_sizes, parallelize


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 64)),
        ({"shard": 8}, (8, 8)),
        ({"replicate": 4}, (4, 16)),
        ({"replicate": 2, "shard": 32}, (2, 32)),
    ],
)
def test_what_is_left_out_follows(settings, expected):
    assert mesh_sizes(ParallelConfig("fsdp", **settings), 64) == expected


@pytest.mark.parametrize("settings", [{"shard": 7}, {"replicate": 2, "shard": 16}, {"replicate": 3}])
def test_sizes_that_do_not_multiply_to_the_ranks_are_named(settings):
    with pytest.raises(ValueError, match="do not multiply to the number of processes, 64"):
        mesh_sizes(ParallelConfig("fsdp", **settings), 64)


@pytest.mark.parametrize("name", ["replicate", "shard"])
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"parallel.{name} is 0; expected at least 1"):
        ParallelConfig("fsdp", **{name: 0})


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match="choose one of ddp, fsdp"):
        mesh_sizes(ParallelConfig("fsdp2"), 8)


def test_every_experiment_takes_a_step_on_64_ranks():
    run_ranks(Path(__file__).with_name("dry_run_worker.py"), 1)


def test_alone_fsdp_shares_nothing_and_says_so():
    with pytest.warns(UserWarning, match="one process has nobody to share with"):
        engine = parallelize(small_model(), ParallelConfig("fsdp"), torch.device("cpu"))
    assert not engine.is_sharded
