"""How signals and errors end a run, from the first moment to the last."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command import wait_for_a_step
from patience import DEADLINE_S

from multicoca.cli.train import _fits_beside
from multicoca.distributed.launch import STOP_SIGNALS, run_processes
from multicoca.train.stopping import Stopped, StopSignal, stopping_at_once


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_are_noted_while_it_trains_and_end_it_elsewhere(number, heeded):
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
    try:
        wait_for_a_step(process, log)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    finally:
        process.kill()
    (saved,) = (tmp_path / "shapes" / "checkpoints").iterdir()
    assert f"step {int(saved.name.removeprefix('step_'))} is saved" in log.read_text()


def train_with_two(folder, *settings, status=0):
    command = [sys.executable, "-m", "multicoca.cli.main", "train", *SETTINGS, f"output={folder}", "train.steps=1"]
    command += ["train.cpu_processes=2", *settings]
    environment = {**os.environ, "MULTICOCA_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_an_error_of_several_processes_is_said_once(tmp_path):
    depth = "modalities.image.encoder.timm_options.depth=[]"
    size = "modalities.image.processor.size_px=48"
    for setting, message in ((depth, "cannot be built"), (size, "48 x 48 px")):
        error = train_with_two(tmp_path, setting, status=2)
        (line,) = [line for line in error.splitlines() if "training:" not in line and "writing" not in line]
        assert line.startswith("multicoca train: ")
        assert message in line


def test_an_error_of_the_first_process_alone_ends_all_and_is_said_once(tmp_path):
    assert "Warning" not in train_with_two(tmp_path)
    error = train_with_two(tmp_path, "seed=4", status=2)
    assert error.startswith("multicoca train: ")
    assert error.count("holds a run with another configuration") == 1
    assert error.count("\n") == 3


def test_errors_that_differ_are_all_said(capfd):
    run_processes(["-c", "from multicoca.cli.main import main; main(['evaluate', 'model=nowhere'])"], 2)
    assert capfd.readouterr().err.count("multicoca evaluate: ") == 1
    code = "import os; from multicoca.cli.main import main; main(['evaluate', 'model=nowhere' + os.environ['RANK']])"
    run_processes(["-c", code], 2)
    error = capfd.readouterr().err
    assert "nowhere0" in error
    assert "nowhere1" in error


TRAIN = """
import os, sys
from multicoca.cli.main import main
from multicoca_image import ImageProcessor
collate = ImageProcessor.collate
def failing(self, samples):
    if os.environ["RANK"] == os.environ["FAILING"]:
        raise {error}
    return collate(self, samples)
ImageProcessor.collate = failing
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_an_error_of_another_process_alone_is_the_only_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FAILING", "1")
    code = TRAIN.format(error="ValueError('rank 1 alone')")
    status = run_processes(["-c", code, *SETTINGS, f"output={tmp_path}", f"data.root={tmp_path}", "data.workers=0"], 2)
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if "writing" not in line and "training:" not in line]
    assert (status, lines) == (2, ["multicoca train: rank 1 alone"])


def test_a_lost_process_is_told_where_no_process_has_printed_an_error(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FAILING", "0")
    code = TRAIN.format(error="RuntimeError('Connection closed by peer')")
    assert (
        run_processes(["-c", code, *SETTINGS, f"output={tmp_path}", f"data.root={tmp_path}", "data.workers=0"], 1) == 1
    )
    assert "RuntimeError: Connection closed by peer" in capfd.readouterr().err


def test_the_end_of_any_process_ends_the_others():
    code = "import os, time; os.environ['RANK'] == '0' and time.sleep(60); raise SystemExit(3)"
    started = time.monotonic()
    assert run_processes(["-c", code], 2) == 3
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("free", "fits"), [(79, False), (80, True)])
def test_a_second_model_is_only_made_where_a_gpu_has_room_for_it(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    assert _fits_beside({"a": torch.zeros(10)}, torch.device("cuda")) is fits
    assert _fits_beside({"a": torch.zeros(10)}, torch.device("cpu"))
