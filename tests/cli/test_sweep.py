"""Sweeps: every combination is a run of its own, and what fails or is stopped says so."""

import os
import signal
import subprocess
import sys

import pytest
import yaml
from command import multicoca, wait_for_a_step
from patience import DEADLINE_S

from multicoca.cli.compose import split_sweep

SETTINGS = [
    "modality=[image]", "train.precision=fp32", "data.batch_size=8", "train.cpu_processes=1", "data.workers=0",
    "data.source.train_items=32", "data.source.test_items=8", "data.source.composition_items=2", "model.width=32",
    "model.num_heads=2", "model.mlp_width=64", "evaluation.gallery=4", "evaluation.draws=1", "train.evaluate_every=0",
]  # fmt: skip


def test_all_combinations_are_told_apart_by_what_differs():
    runs = split_sweep(["optim.lr=1e-3,3e-4", "modality=[image,video]", "+optim.lr_scale.image=0.5,1", "name=mine"])
    assert [combination for _, combination in runs] == [
        "optim.lr_0.001+optim.lr_scale.image_0.5", "optim.lr_0.001+optim.lr_scale.image_1",
        "optim.lr_0.0003+optim.lr_scale.image_0.5", "optim.lr_0.0003+optim.lr_scale.image_1",
    ]  # fmt: skip
    assert runs[3][0] == ["optim.lr=0.0003", "modality=[image,video]", "+optim.lr_scale.image=1", "name=mine"]
    assert [run for run, _ in split_sweep(["seed=range(3)"])] == [["seed=0"], ["seed=1"], ["seed=2"]]
    shards = "data.root=shards/{000..009}.tar"
    assert split_sweep([shards, "seed=0,1"])[1][0] == [shards, "seed=1"]


@pytest.mark.parametrize(("overrides", "message"), [
    (["seed=1"], "nothing to sweep over"), (["seed=[1"], "composed"),
    (["seed=0,1", "seed=3"], "seed=0,1 cannot be swept"),
    (["experiment=glob(shapes*)"], "cannot be swept over"),
])  # fmt: skip
def test_what_is_no_sweep_is_told(overrides, message):
    with pytest.raises(ValueError, match=message):
        split_sweep(overrides)


def test_folders_of_combinations_are_short_and_each_is_another():
    long = [f"data.root={'x' * 300}{number}" for number in (1, 2)]
    runs = split_sweep([f"{long[0]},{long[1].removeprefix('data.root=')}", "seed=0,1"])
    assert len({name for _, name in runs}) == 4
    assert max(len(name) for _, name in runs) < 200
    names = [name for _, name in split_sweep(["name=a b,a_b"])]
    assert len(set(names)) == 2
    assert names[::-1] == [name for _, name in split_sweep(["name=a_b,a b"])]


def test_a_run_that_fails_does_not_end_the_others(tmp_path):
    sweep = ["train", "-m", "modalities.image.processor.size_px=48,64", "seed=0", "train.steps=1", *SETTINGS]
    said = multicoca(tmp_path, *sweep, status=1)
    assert "run 1 of 2: shapes/modalities.image.processor.size_px_48" in said
    assert "the image is 48 x 48 px" in said
    assert "1 of 2 runs failed: shapes/modalities.image.processor.size_px_48" in said
    trained = [path.parent.name for path in (tmp_path / "runs" / "shapes").glob("*/report.html")]
    assert trained == ["modalities.image.processor.size_px_64"]


def test_nothing_is_trained_where_a_combination_is_wrong(tmp_path):
    said = multicoca(tmp_path, "train", "--multirun", "optim.lr=0.1,-3", "train.steps=1", *SETTINGS, status=2)
    assert "optim.lr is -3" in said
    assert not (tmp_path / "runs").exists()


def test_a_signal_saves_and_ends_the_whole_sweep(tmp_path):
    sweep = ["train", "--multirun", "seed=0,1", "train.steps=100000", "train.checkpoint_every=100000", *SETTINGS]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "multicoca.cli.main", *sweep, f"output={tmp_path}"],
            env={**os.environ, "MULTICOCA_CACHE": str(tmp_path / "cache")}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for_a_step(process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert [path.name for path in (tmp_path / "shapes").iterdir() if path.is_dir()] == ["seed_0"]
    assert len(list((tmp_path / "shapes" / "seed_0" / "checkpoints").iterdir())) == 1


def test_the_configuration_of_a_run_is_shown_and_nothing_is_written(tmp_path):
    shown = yaml.safe_load(multicoca(tmp_path, "train", "--cfg", "job", "optim.lr=0.5", *SETTINGS))
    assert (shown["optim"]["lr"], shown["name"], shown["model"]["width"]) == (0.5, "shapes", 32)
    assert "give --cfg job" in multicoca(tmp_path, "train", "--cfg", "hydra", status=2)
    both = multicoca(tmp_path, "train", "--cfg", "job", "-m", "seed=1,2", *SETTINGS)
    runs = [(each["seed"], each["name"]) for each in yaml.safe_load_all(both)]
    assert runs == [(1, "shapes/seed_1"), (2, "shapes/seed_2")]
    assert list(tmp_path.iterdir()) == []
