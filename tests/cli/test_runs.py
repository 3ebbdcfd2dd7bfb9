"""A run's folder: what a name may be, what `fresh` deletes, what may change between starts, and how signals end it."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from patience import DEADLINE_S

from multicoca.cli.runs import opened_run
from multicoca.config import Config
from multicoca.distributed.launch import STOP_SIGNALS
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.train.optim import OptimConfig
from multicoca.train.stopping import Stopped, StopSignal, stopping_at_once


def opened(folder, **changes):
    config = replace(Config(output=str(folder)), **changes)
    with opened_run(folder / config.name, config):
        (folder / config.name / "kept").touch()


@pytest.mark.parametrize("name", ["", ".", "..", "a/../..", "/tmp/somewhere"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="expected the name of a folder below output"):
        opened(tmp_path, name=name, fresh=True)
    assert (tmp_path / "precious").is_file()


def test_fresh_deletes_runs_and_nothing_else(tmp_path):
    opened(tmp_path, name="mine", seed=1)
    opened(tmp_path, name="mine", seed=2, fresh=True)
    assert "seed: 2" in (tmp_path / "mine" / "config.yaml").read_text()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "precious.py").touch()
    with pytest.raises(ValueError, match="holds files but no run; fresh=true does not delete it"):
        opened(tmp_path, name="code", fresh=True)
    assert (tmp_path / "code" / "precious.py").is_file()


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_fresh_does_not_delete_what_an_automatic_restart_goes_on_with(tmp_path, monkeypatch, name):
    opened(tmp_path, fresh=True)
    monkeypatch.setenv(name, "1")
    (tmp_path / "run" / "checkpoint").touch()
    opened(tmp_path, fresh=True)
    assert (tmp_path / "run" / "checkpoint").is_file()


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    opened(tmp_path)
    saved = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(saved.read_text())
    del settings["optim"]["muon_precision"], settings["train"]["max_bad_steps"]
    saved.write_text(yaml.safe_dump(settings))
    opened(tmp_path)
    saved.write_text(yaml.safe_dump({**settings, "gone": 1}))
    with pytest.raises(ValueError, match="gone: 1 then, absent now"):
        opened(tmp_path)


def test_another_configuration_is_shown_and_accepted_only_when_asked(tmp_path, capsys):
    opened(tmp_path)
    opened(tmp_path, evaluation=EvaluationConfig(batch_size=3))  # changes nothing that is trained
    changed = {"optim": OptimConfig(lr=0.5), "seed": 4}
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.0008 then, 0\.5 now\n  seed: 0 then, 4 now\n.*accept_changes"):
        opened(tmp_path, **changed)
    opened(tmp_path, **changed, accept_changes=True)
    assert "optim.lr: 0.0008 then, 0.5 now" in capsys.readouterr().out
    opened(tmp_path, **changed)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_noted_while_it_trains_and_end_it_elsewhere(number):
    before = signal.getsignal(number)

    def wait_for_it():
        with stopping_at_once():
            with StopSignal() as stop:
                os.kill(os.getpid(), number)
                assert stop.number == number
            os.kill(os.getpid(), number)

    def insist():
        with stopping_at_once(), StopSignal():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # the second one does not wait for the end of a step

    for twice in (wait_for_it, insist):
        with pytest.raises(Stopped) as stopped:
            twice()
        assert stopped.value.number == number
    assert signal.getsignal(number) == before


SETTINGS = [
    "modality=[image]", "train.precision=fp32", "data.batch_size=8", "train.cpu_processes=1", "data.workers=1",
    "data.source.train_items=32", "data.source.test_items=8", "data.source.composition_items=2",
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "evaluation.gallery=4", "evaluation.draws=1",
    "train.steps=100000", "train.checkpoint_every=100000",
]  # fmt: skip


def test_sigterm_to_all_processes_of_a_group_saves_with_data_workers_too(tmp_path):
    command = [sys.executable, "-m", "multicoca.cli.main", "train", *SETTINGS, f"output={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MULTICOCA_CACHE": str(tmp_path / "cache")}
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
    until = time.monotonic() + DEADLINE_S
    try:
        while not re.search(r"[1-9]\d*/100000", log.read_text()):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    finally:
        process.kill()
    (saved,) = (tmp_path / "shapes" / "checkpoints").iterdir()
    assert f"step {int(saved.name.removeprefix('step_'))} is saved" in log.read_text()
