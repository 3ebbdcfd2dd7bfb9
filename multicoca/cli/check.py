"""`multicoca check`: whether a cluster is set up for training, found out before a long run depends on it.

All ranks run the same checks in the same order. A check returns what is wrong once its collectives are done. A rank
that raises in the middle of one is no longer in step with the others, so that the checks behind it are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from multicoca.cli.check_ranks import Finding, check_all_reduce, check_machines, check_timeout, ranks_by
from multicoca.cli.check_training import check_checkpoint, check_gradients, gradients, pairs, small_coca
from multicoca.cli.main import describe
from multicoca.distributed.collectives import rank
from multicoca.distributed.heartbeat import Heartbeat
from multicoca.distributed.parallelize import Engine, ParallelConfig, mesh_sizes
from multicoca.distributed.setup import distributed, has_lost_rank, naming_lost_ranks, run_as_rank, training_device

_LEAST_TIMEOUT_S = 30.0  # the rank that is late on purpose waits for the others for less than that


def run_check(arguments: list[str]) -> int:
    """Runs the command; exit status 1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="multicoca check", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs will be written (runs)")
    parser.add_argument("--mib", type=int, default=256, help="size of the all-reduce and of the checkpoint (256)")
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, help="a collective that takes longer has failed (600)"
    )
    parser.add_argument("--shard", type=int, help="parallel.shard of the run")
    parser.add_argument("--replicate", type=int, help="parallel.replicate of the run")
    options = parser.parse_args(arguments)
    if options.mib < 1 or options.timeout_s < _LEAST_TIMEOUT_S:
        raise ValueError(
            f"--mib is {options.mib}, --timeout-s {options.timeout_s:g}; expected at least 1 and {_LEAST_TIMEOUT_S:g}"
        )
    fsdp = ParallelConfig("fsdp", options.replicate, options.shard)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    replicate, shard = mesh_sizes(fsdp, ranks)
    device = training_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    alone = small_coca().to(device)
    expected = gradients(Engine(alone, alone), pairs(range(ranks)))  # before ranks meet: losses gather from all of them
    checks = {"machines": partial(check_machines, device)}
    together = {
        "all-reduce": partial(check_all_reduce, options.mib, device),
        "gradients, ddp": partial(check_gradients, ParallelConfig(), expected, device),
        f"gradients, fsdp {replicate} x {shard}": partial(check_gradients, fsdp, expected, device),
        "time-out": partial(check_timeout, device),
    }
    checks |= together if ranks > 1 else {}
    checks["checkpoint"] = partial(check_checkpoint, options.folder, options.mib, fsdp, device)
    with distributed(device, options.timeout_s), naming_lost_ranks():
        if ranks == 1:
            print("one process: what ranks do together is left out; torchrun starts several")
        return 0 if all_are_ok(checks, Heartbeat(2 * options.timeout_s)) else 1


def all_are_ok(checks: Mapping[str, Callable[[], Finding]], heartbeat: Heartbeat) -> bool:
    """Runs checks and prints a line for each as it ends.

    Args:
        checks: by name.
        heartbeat: waits longer than a collective, so that a rank that left a check meets those that timed out in it.
    """
    is_ok = True
    for name, check in checks.items():
        try:
            finding = check()
        except (ValueError, OSError, RuntimeError) as error:
            is_lost = isinstance(error, RuntimeError) and has_lost_rank(error)
            finding = Finding("", describe(error), has_left=True, has_lost_rank=is_lost)
        _, findings = heartbeat.exchange(None, [finding])
        problems = ranks_by([each.problem for each in findings])
        problems.pop("", None)
        is_ok = is_ok and not problems
        if rank() == 0:
            print(f"{name:<26}{'WRONG' if problems else 'ok':<7}{findings[0].numbers}", flush=True)
            for problem, ranks in problems.items():
                print(f"  {ranks}: {problem}", flush=True)
        left = sum(each.has_left for each in findings)
        if 0 < left < len(findings) or any(each.has_lost_rank for each in findings):
            if rank() == 0 and name != list(checks)[-1]:
                print("ranks are no longer in step; the checks behind this one are left out", flush=True)
            return False
    return is_ok


if __name__ == "__main__":
    from multicoca.cli.main import main

    run_as_rank(lambda: main(["check", *sys.argv[1:]]))
