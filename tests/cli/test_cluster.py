"""A training run as a job, by submitit's executor for this machine: a signal saves it and queues it again."""

import re
import signal
import time

import psutil
import pytest
from patience import DEADLINE_S

from multicoca.cli.cluster import Job, is_launcher, queue_again, submit
from multicoca.train.checkpoint import whole_checkpoints

SETTINGS = [
    "modality=[image]", "train.precision=fp32", "train.checkpoint_every=1000", "data.batch_size=8",
    "data.source.train_items=32", "data.source.test_items=8", "data.source.composition_items=2",
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "evaluation.gallery=4", "evaluation.draws=1",
]  # fmt: skip


def test_a_job_trains_on_two_ranks_and_is_queued_again_by_a_signal(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("MULTICOCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "job"
    launcher = [
        "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", f"hydra.launcher.submitit_folder={folder}",
        "hydra.launcher.timeout_min=10",
    ]  # fmt: skip
    arguments = [*SETTINGS, f"output={tmp_path}", "name=run", "train.steps=100000"]
    job = submit([*arguments, *launcher])
    controller = psutil.Process(int(job.job_id))
    try:
        wait_for(job, r"[1-9]\d*/100000")
        for task in controller.children():
            task.send_signal(signal.SIGUSR2)
        wait_for(job, "Requeued job")
        wait_for(job, "resuming at step")
        assert whole_checkpoints(tmp_path / "run" / "checkpoints")
    finally:
        for process in (controller, *controller.children(recursive=True)):
            process.kill()


def wait_for(job, pattern: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not re.search(pattern, said := "".join(file.read_text() for file in (job.paths.stdout, job.paths.stderr)
                                                 if file.is_file())):  # fmt: skip
        assert time.monotonic() < until, said[-2000:]
        time.sleep(0.2)


def test_what_is_queued_again_is_the_same_command():
    pytest.importorskip("submitit")
    job = Job(("modality=[image]",))
    assert job.checkpoint().function == job
    assert is_launcher("hydra/launcher=slurm")
    assert is_launcher("+hydra.launcher.nodes=2")
    assert not is_launcher("train.steps=3")


@pytest.mark.parametrize(
    ("number", "known", "queued"),
    [
        (signal.SIGUSR1, "", True),
        (signal.SIGTERM, "StartTime=2026-05-01T10:00:00 PreemptTime=2026-05-01T11:00:00", True),
        (signal.SIGTERM, "StartTime=2026-05-01T10:00:00 PreemptTime=None", False),  # its owner has cancelled it
        (signal.SIGTERM, "StartTime=2026-05-01T10:00:00 PreemptTime=2026-05-01T09:00:00", False),  # before a requeue
        (signal.SIGINT, "StartTime=2026-05-01T10:00:00 PreemptTime=2026-05-01T11:00:00", False),
    ],
)
def test_a_job_that_has_to_make_room_is_queued_again_and_one_that_is_cancelled_not(
    tmp_path, monkeypatch, number, known, queued
):
    asked = tmp_path / "asked.txt"
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\necho $@ >> {asked}\necho '{known}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    queue_again(number)
    assert ("requeue 17" in (asked.read_text() if asked.is_file() else "")) is queued


def test_submitit_queues_a_job_again_that_has_to_make_room(monkeypatch):
    raised = []
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("multicoca.cli.cluster._is_preempted", lambda job: job == "17")
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    queue_again(signal.SIGTERM)
    assert raised == [signal.SIGUSR2]
