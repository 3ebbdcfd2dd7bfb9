"""Training as a Slurm job: `multicoca train hydra/launcher=slurm hydra.launcher.nodes=4 ...`.

Hydra's submitit launcher brings the configuration, submitit the job: a task for each GPU, and a job that is queued
again when its time is up or it has to make room, after training has saved. The same code runs with submitit's local
executor.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multicoca.cli.compose import compose_launcher
from multicoca.modality import require


@dataclass(frozen=True)
class Job:
    """A call of `multicoca train` on all ranks of a job; submitit sends it there.

    Attributes:
        arguments: of the command, without those about the launcher.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Trains as one rank; returns the exit status."""
        from submitit.helpers import TorchDistributedEnvironment

        from multicoca.cli.train import run_train

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        return run_train(list(self.arguments))

    def checkpoint(self) -> Any:
        """Returns what submitit queues again after a signal; it must not begin anew."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(tuple(each for each in self.arguments if not each.startswith("fresh="))))


def is_launcher(argument: str) -> bool:
    """Whether an argument chooses or sets a launcher."""
    return argument.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))


def submit(arguments: Sequence[str]) -> Any:
    """Submits a training run as its launcher's configuration says; returns submitit's job.

    Raises:
        ValueError: the launcher is not one of submitit's, or a field of it is wrong.
        MissingPackageError: submitit is not installed.
    """
    submitit = require("submitit", "cluster")
    values = compose_launcher(list(arguments))
    kind = values.pop("_target_").rpartition(".")[2]
    clusters = {"SlurmLauncher": "slurm", "LocalLauncher": "local"}
    if kind not in clusters:
        raise ValueError(f"hydra/launcher gives {kind}; choose slurm or submitit_local")
    cluster = clusters[kind]
    values = {name: value for name, value in values.items() if value is not None}
    folder = values.pop("submitit_folder")
    init = {f"{cluster}_max_num_timeout": values.pop("max_num_timeout")} if "max_num_timeout" in values else {}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **init)
    shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name",
              "stderr_to_stdout")  # fmt: skip
    executor.update_parameters(
        **{name if name in shared else f"{cluster}_{name}": value for name, value in values.items()}
    )
    return executor.submit(Job(tuple(argument for argument in arguments if not is_launcher(argument))))


def queue_again(number: int) -> None:
    """Queues a Slurm job again after training has saved at a signal of the queue; elsewhere it does nothing.

    SIGUSR1 and SIGUSR2 say that the time is up. SIGTERM says that the job has to make room, or that its owner has
    cancelled it; only in the first case it comes back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if number not in (signal.SIGUSR1, signal.SIGUSR2) and not (number == signal.SIGTERM and job and _is_preempted(job)):
        return
    if "SUBMITIT_EXECUTOR" in os.environ:
        signal.raise_signal(signal.SIGUSR2)  # submitit's own handler, which training had replaced
    elif job and os.environ.get("RANK", "0") == "0":
        subprocess.run(["scontrol", "requeue", job], check=True)


def _is_preempted(job: str) -> bool:
    """Whether Slurm has said that a job must make room since it started, which is among what it knows of the job."""
    if shutil.which("scontrol") is None:
        return False
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # times whose order is that of their texts
    command = ["scontrol", "show", "job", job]
    known = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    started, preempted = (re.search(rf"\b{name}=(\d\S+)", known) for name in ("StartTime", "PreemptTime"))
    return started is not None and preempted is not None and preempted[1] >= started[1]
