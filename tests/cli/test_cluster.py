"""A training run as a job, by submitit's executor for this machine: a signal saves it and queues it again."""

import re
import signal
import time

import psutil
import pytest
from patience import DEADLINE_S

from multicoca.cli.cluster import Job, is_launcher, submit
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
