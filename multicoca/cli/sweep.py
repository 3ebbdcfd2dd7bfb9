"""Several trainings by one command: `multicoca train --multirun optim.lr=1e-3,3e-4 seed=0,1`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from multicoca.cli.cluster import is_launcher, submit
from multicoca.cli.compose import compose_training, split_sweep
from multicoca.distributed.launch import STOP_SIGNALS, is_launched, run_process
from multicoca.terminal import printable

SWEEP = ("-m", "--multirun")


def sweep_runs(arguments: Sequence[str]) -> list[tuple[list[str], str]]:
    """Returns (overrides, name) of each run of a sweep; the overrides set the name.

    Raises:
        ValueError: the settings of a combination are wrong.
    """
    runs = []
    for overrides, combination in split_sweep([argument for argument in arguments if argument not in SWEEP]):
        name = f"{compose_training(overrides).name}/{combination}"
        quoted = name.replace("\\", "\\\\").replace("'", "\\'")
        runs.append(([*overrides, f"name='{quoted}'"], name))
    return runs


def run_sweep(arguments: Sequence[str]) -> int:
    """Trains every combination of the values, one after the other, in a folder NAME/COMBINATION each.

    The sweep continues after a run that fails and ends at a signal; the same command resumes it. With a launcher each
    combination is a job of its own.

    Returns:
        The exit status: 0, 1 where a training has failed, 128 + its number after a signal.

    Raises:
        ValueError: the settings of a combination are wrong, so that none is trained, or torchrun has started this.
    """
    if is_launched():
        raise ValueError("a sweep starts its own processes; call torchrun for each combination, or use hydra/launcher")
    runs = sweep_runs(arguments)
    failed = []
    for number, (run, name) in enumerate(runs, 1):
        print(f"run {number} of {len(runs)}: {printable(name)}", flush=True)
        if any(map(is_launcher, run)):
            job = submit(run)
            print(f"job {job.job_id}; its output: {job.paths.stdout}")
            continue
        status = run_process(["-m", "multicoca.cli.train", *run])
        if status - 128 in STOP_SIGNALS:
            return status
        if status:
            failed.append(name)
    if failed:
        said = ", ".join(map(printable, failed))
        print(f"multicoca train: {len(failed)} of {len(runs)} runs failed: {said}", file=sys.stderr)
    return int(bool(failed))
