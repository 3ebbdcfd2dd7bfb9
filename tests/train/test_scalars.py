"""A run's scalars over interruptions: every point once, in TensorBoard as in the JSON lines."""

import json
import re
import shutil

import pytest
import torch
from test_metrics import batch, scalars
from test_training import go, run_parts  # noqa: F401, a fixture

from multicoca import terminal
from multicoca.train.metrics import TrainingLog
from multicoca.train.scalars import ScalarWriter, keep_order

TIMED = ("samples_per_s", "text_tokens_per_s", "data_wait_share", "tflops_per_rank", "memory_gib", "time")


def refuse(name: str):
    raise AssertionError(f"{name} is no JSON")


def lines(folder) -> list[dict]:
    text = (folder / "scalars.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def write_steps(folder, first: int, steps, end: bool = True) -> None:
    writer = ScalarWriter(folder, first)
    for step in steps:
        writer.add_scalar("loss/a", step / 2, step)
        writer.add_scalar("loss/b", step / 4, step)
    if end:
        writer.close()
    else:
        writer.flush()  # and then it is killed


@pytest.mark.parametrize("clock", [[1e9, 1e9 + 100, 1e9 + 200], [1e9, 1e9 - 5000, 1e9 - 4000], [1e9, 1e9, 1e9]])
def test_no_curve_is_lost_when_the_clock_was_set_back(tmp_path, monkeypatch, clock):
    for now, (first, steps) in zip(clock, [(0, range(1, 8)), (5, range(6, 12)), (9, range(10, 15))], strict=True):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_steps(tmp_path, first, steps, end=False)
    expected = [(step, step / 2) for step in range(1, 15)]
    assert scalars(tmp_path / "tensorboard")["loss/a"] == expected
    assert [(line["step"], line["loss/a"]) for line in lines(tmp_path)] == expected


def test_names_of_event_files_keep_their_order(tmp_path):
    names = [f"events.out.tfevents.{stamp:010d}.host.{pid}.0" for stamp, pid in ((5, 1), (7, 3), (7, 9), (2000, 2))]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.txt").touch()
    keep_order(tmp_path, 7)
    files = sorted(path for path in tmp_path.iterdir() if path.name != "notes.txt")
    assert [path.read_text() for path in files] == names
    assert files[-1].name < "events.out.tfevents.0000000007"
    keep_order(tmp_path, 9)
    assert sorted(path for path in tmp_path.iterdir() if path.name != "notes.txt") == files


def test_json_lines_have_all_scalars_of_a_write_and_are_strict(tmp_path):
    writer = ScalarWriter(tmp_path, 0)
    for tag, value in {"a": float("nan"), "b": float("inf"), "c": torch.tensor(-float("inf")), "d": 1}.items():
        writer.add_scalar(tag, value, 3)
    writer.end_line()
    writer.add_scalar("probe", 0.5, 3)
    writer.add_scalar("a", 1.0, 4)
    writer.close()
    first, second, third = lines(tmp_path)
    assert isinstance(first.pop("time"), float)
    assert first == {"step": 3, "a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    assert (second["step"], second["probe"], third["step"], third["a"]) == (3, 0.5, 4, 1.0)


def test_torn_lines_go_with_the_next_start_and_all_others_stay(tmp_path):
    write_steps(tmp_path, 0, range(1, 5))
    file = tmp_path / "scalars.jsonl"
    whole = file.read_bytes()
    for torn in (b'{"step": 4, "los', b'{"step": 4}', b"\0\0\0\0", b"\xff\n", b"[4]\n"):
        file.write_bytes(whole + torn)
        write_steps(tmp_path, 4, [])
        assert file.read_bytes() == whole, torn


def test_the_lines_of_a_resumed_run_are_those_of_one_never_stopped(run_parts, tmp_path):  # noqa: F811
    whole, listing, steps = run_parts(["image"])
    go(whole, listing, steps, tmp_path / "whole", 20)
    stopped, *_ = run_parts(["image"])
    go(stopped, listing, steps, tmp_path / "part", 20, checkpoint_every=10, keep_last=5)
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_00000020")  # as if it had been killed before
    with (tmp_path / "part" / "scalars.jsonl").open("a") as file:
        file.write('{"step": 20, "ti')
    resumed, *_ = run_parts(["image"])
    go(resumed, listing, steps, tmp_path / "part", 20)

    def untimed(folder):
        return [{tag: v for tag, v in line.items() if not tag.startswith(TIMED)} for line in lines(folder)]

    assert untimed(tmp_path / "part") == untimed(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "part")] == [5, 10, 15, 20]


def test_what_an_evaluation_writes_is_a_line(tmp_path):
    log = TrainingLog(tmp_path, 0, 10, ranks=1, visible=True)
    log.write(2, {"loss/captioning/a": 1.0})
    log.writer.add_scalar("probe/a", 0.25, 2)
    log.pause()
    assert [line.get("probe/a") for line in lines(tmp_path)] == [None, 0.25]
    log.close()


def test_a_log_file_gets_a_line_now_and_then_with_all_that_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
    log = TrainingLog(tmp_path, 10, 20, ranks=1, visible=True)
    for step in range(11, 21):
        log.write(step, {"loss/captioning/a": 1.5, "loss/contrastive/a": 1.0})
        log.count([batch("a", [3])])
    log.say("a line\x1b[2J\nwith more")
    log.close()
    output, error = capsys.readouterr()
    assert output == "a line\\x1b[2J\\nwith more\n"
    assert "\r" not in error
    shown = error.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert all(re.match(stamp + "training: ", line) for line in shown)
    assert re.fullmatch(
        stamp + r"training: 75% 15/20 step, .*step/s, 00:0\d left, a=2\.50, samples/s=\d+.*", shown[5]
    ), shown
    assert "training: 100% 20/20 step" in shown[-1]


def test_between_two_lines_of_a_log_file_passes_the_interval(tmp_path, capsys):
    log = TrainingLog(tmp_path, 0, 1000, ranks=1, visible=True)
    for step in range(1, 1001):
        log.write(step, {"loss/captioning/a": 1.5})
        log.count([batch("a", [3])])
    log.close()
    assert len(capsys.readouterr().err.splitlines()) == 2  # the beginning and the end
