"""What a run says about itself: throughput by modality, padding, waiting, memory, and a profiler's trace."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import go, run_parts  # noqa: F401, a fixture

from multicoca.data.sample import Batch
from multicoca.train import metrics
from multicoca.train.metrics import TrainingLog


def batch(modality: str, lengths: list[int]) -> Batch:
    ids = torch.zeros(len(lengths), 10, dtype=torch.long)
    return Batch(modality, {}, ids, torch.tensor(lengths), ())


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_throughput_by_hand(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics, "peak_flops", lambda: 1e6)
    log = TrainingLog(tmp_path, 0, 10, ranks=4, visible=True)
    log.flops, log._seen.since = {"a": 5e4, "b": 1e5}, now[0]

    def slow():
        for own in ([batch("a", [10, 5])], [batch("a", [10, 5]), batch("b", [4])]):
            now[0] += 0.5  # waits for data
            yield own

    for own in log.waiting(slow()):
        now[0] += 1.5  # computes
        log.count(own)
    log.write(2, {"loss/captioning/a": 1.0})
    log.close()
    found = {tag: value for tag, ((step, value),) in scalars(tmp_path / "tensorboard").items() if step == 2}
    assert found == pytest.approx(
        {
            "loss/captioning/a": 1.0,
            "samples_per_s": 5 * 4 / 4.0,
            "samples_per_s/a": 4 * 4 / 4.0,
            "samples_per_s/b": 1 * 4 / 4.0,
            "text_tokens_per_s/a": 30 * 4 / 4.0,
            "text_tokens_per_s/b": 4 * 4 / 4.0,
            "text_padding_share/a": 0.25,
            "text_padding_share/b": 0.6,
            "data_wait_share": 0.25,
            "tflops_per_rank": (4 * 5e4 + 1e5) / 4.0 / 1e12,
            "mfu": (4 * 5e4 + 1e5) / 4.0 / 1e6,
        }
    )


@pytest.mark.parametrize(
    ("step_s", "says"), [(0.1, "about 47 s"), (1.2, "about 9 min"), (2.0, "about 16 min; have tea")]
)
def test_what_to_expect_is_said_once_by_the_pace_of_warm_steps(tmp_path, monkeypatch, capsys, step_s, says):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    log = TrainingLog(tmp_path, 0, 480, ranks=1, visible=True, shorter="have tea")
    for step in range(30):
        now[0] += 60 if step < 3 else step_s
        log.count([batch("a", [1])])
    log.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "will take" in line]
    assert line == f"{step_s:.2g} s a step here: the other 467 steps will take {says}"


def test_a_run_of_a_few_steps_says_nothing_of_time(tmp_path, capsys):
    log = TrainingLog(tmp_path, 0, 20, ranks=1, visible=True)
    for _ in range(20):
        log.count([batch("a", [1])])
    log.close()
    assert "will take" not in capsys.readouterr().out


def test_other_ranks_write_nothing(tmp_path):
    log = TrainingLog(tmp_path / "run", 0, 10, ranks=2, visible=False)
    log.count([batch("a", [1])])
    log.write(1, {"loss/captioning/a": 1.0})
    log.say("unheard")
    log.close()
    assert not (tmp_path / "run").exists()


def test_a_run_shows_all_of_it_and_leaves_a_trace_of_the_window(run_parts, tmp_path):  # noqa: F811
    bundle, listing, steps = run_parts(["image", "points"])
    go(bundle, listing, steps, tmp_path, 10, profile_from=2, profile_steps=2)
    found = scalars(tmp_path / "tensorboard")
    by_modality = ("loss/contrastive", "loss/captioning", "token_accuracy", "temperature", "samples_per_s",
                   "text_tokens_per_s", "text_padding_share")  # fmt: skip
    expected = {f"{tag}/{modality}" for tag in by_modality for modality in ("image", "points")}
    expected |= {"samples_per_s", "data_wait_share", "tflops_per_rank", "gradient_norm", "learning_rate", "bad_steps"}
    expected |= {"checkpoint_pause_s"}
    assert set(found) == expected | {"memory_gib"}
    assert {step for values in found.values() for step, _ in values} == {5, 10}
    assert found["temperature/image"][0][1] == pytest.approx(0.07, abs=0.01)
    assert all(0 <= value < 1 for _, value in found["text_padding_share/image"] + found["data_wait_share"])
    (trace,) = (tmp_path / "profile").glob("*.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"ProfilerStep#2", "ProfilerStep#3"} <= names
    assert not {"ProfilerStep#1", "ProfilerStep#4"} & names


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
     ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("NVIDIA RTX A1000", None)],
)  # fmt: skip
def test_the_peak_of_a_gpu_goes_by_its_whole_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert metrics.peak_flops() == peak
