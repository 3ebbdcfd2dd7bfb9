"""One of the ranks of test_check.py, on which something is wrong on purpose."""

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from multicoca.cli import check_ranks, check_training
from multicoca.cli.check import all_are_ok
from multicoca.cli.check_ranks import Finding, check_all_reduce, check_timeout
from multicoca.cli.check_training import check_checkpoint, check_gradients, gradients, pairs, small_coca
from multicoca.cli.main import main
from multicoca.distributed.collectives import rank, wait_for_all
from multicoca.distributed.heartbeat import Heartbeat
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.distributed.setup import distributed, run_as_rank

DEVICE = torch.device("cpu")
FSDP = ParallelConfig("fsdp")


def unshared(folder: Path) -> int:
    """Runs the command where each rank has a folder of its own under the same name."""
    own = folder / os.environ["RANK"]
    own.mkdir()
    os.chdir(own)
    return main(["check", "--mib", "1", "--folder", "runs"])


def broken(folder: Path, expected: dict[str, torch.Tensor]) -> int:
    """Runs checks of which each finds what is broken for it."""

    def averaged() -> Finding:
        check_training.parallelize = lambda *args, **options: replace(parallelize(*args, **options), gradient_factor=1)
        return check_gradients(ParallelConfig(), expected, DEVICE)

    def wrong_sum() -> Finding:
        reduce = dist.all_reduce

        def forgets(values: torch.Tensor) -> None:
            reduce(values)
            values[-1] += rank()

        dist.all_reduce = forgets
        finding = check_all_reduce(1, DEVICE)
        dist.all_reduce = reduce
        return finding

    def changed_on_disk() -> Finding:
        read = check_training.Checkpoints.load_latest

        def changing(checkpoints: check_training.Checkpoints) -> None:
            read(checkpoints)
            if rank() == 1:
                shard = next(checkpoints.model.parameters()).to_local()
                shard.view(torch.int32)[..., -1] ^= 1  # the last bit

        check_training.Checkpoints.load_latest = changing
        return check_checkpoint(folder, 1, FSDP, DEVICE)

    def not_named() -> Finding:
        check_ranks._LIMIT_S, naming = 3.0, check_ranks.naming_lost_ranks
        check_ranks.naming_lost_ranks = lambda answer_s: nullcontext()
        finding = check_timeout(DEVICE)
        check_ranks.naming_lost_ranks = naming
        return finding

    def waits_longer() -> Finding:
        check_ranks._LIMIT_S, new_group = 1.0, dist.new_group
        dist.new_group = lambda **options: new_group(**options | {"timeout": timedelta(seconds=3)})
        finding = check_timeout(DEVICE)
        dist.new_group = new_group
        return finding

    def fails_on_all() -> Finding:
        raise ValueError("every rank says so")

    def fails_on_one() -> Finding:
        if rank() == 1:
            raise ValueError("rank 1 alone says so")
        wait_for_all()
        raise AssertionError("rank 1 never came")

    checks = {
        "averaged": averaged,
        "wrong sum": wrong_sum,
        "changed on disk": changed_on_disk,
        "not named": not_named,
        "waits longer": waits_longer,
        "fails on all": fails_on_all,
        "fine": partial(Finding, "as it was"),
        "fails on one": fails_on_one,
        "left out": fails_on_all,
    }
    return 0 if all_are_ok(checks, Heartbeat(60)) else 1


place = Path(sys.argv[2])
if sys.argv[1] == "unshared":
    run_as_rank(lambda: unshared(place))
whole = small_coca()
alone = gradients(Engine(whole, whole), pairs(range(2)))  # before ranks meet
with distributed(DEVICE, 10):
    run_as_rank(lambda: broken(place, alone))
