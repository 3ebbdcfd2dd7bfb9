"""A run's folder: what a name may be, what `fresh` deletes, what may change between starts, and when it is written."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from multicoca.config import Config
from multicoca.data.sample import Item
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.runs.folder import ITEMS, opened_run
from multicoca.train.loop import TrainConfig
from multicoca.train.optim import OptimConfig


def items(*names):
    return {"it": [Item(name, Path(name), "it", ("a",)) for name in names]}


def opened(folder, found=None, **changes):
    config = replace(Config(output=str(folder)), **changes)
    with opened_run(folder / config.name, config) as run:
        run.begin("{}", found or items("a", "b"))
    (folder / config.name / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", ["", ".", "..", "a/../..", "/tmp/somewhere"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="expected the name of a folder below output"):
        opened(tmp_path, name=name, fresh=True)
    assert (tmp_path / "precious").is_file()


def test_fresh_deletes_what_runs_write_and_nothing_else(tmp_path):
    opened(tmp_path, name="mine", seed=1)
    run = tmp_path / "mine"
    (run / "tensorboard").symlink_to(tmp_path)
    (run / "notes.txt").write_text("precious")
    (run / "plots").mkdir()
    opened(tmp_path, name="mine", seed=2, fresh=True)
    assert "seed: 2" in (run / "config.yaml").read_text()
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "items.npz", "notes.txt", "plots", "tokenizer.json",
    ]  # fmt: skip
    assert tmp_path.is_dir()


def test_nothing_is_written_or_deleted_before_everything_is_built(tmp_path):
    with opened_run(tmp_path / "run", Config(output=str(tmp_path), seed=1)):
        pass  # an encoder could not be built
    assert not (tmp_path / "run").exists()
    opened(tmp_path, seed=2)
    with opened_run(tmp_path / "run", Config(output=str(tmp_path), seed=3, fresh=True)):
        pass
    assert "seed: 2" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_fresh_does_not_delete_what_an_automatic_restart_goes_on_with(tmp_path, monkeypatch, name):
    opened(tmp_path, fresh=True)
    monkeypatch.setenv(name, "1")
    kept = tmp_path / "run" / "checkpoints" / "step_00000001" / "kept"
    kept.touch()
    opened(tmp_path, fresh=True)
    assert kept.is_file()


def test_a_model_folder_is_no_place_for_a_run(tmp_path):
    files = ("config.yaml", "tokenizer.json", "model.safetensors")
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).write_text("precious")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="is a model folder"):
            opened(tmp_path, name="model", fresh=fresh)
    assert all((tmp_path / "model" / name).read_text() == "precious" for name in files)


def test_somebody_elses_configuration_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine: 1")
    with pytest.raises(ValueError, match="mine: 1 then, absent now"):
        opened(tmp_path)
    assert (tmp_path / "run" / "config.yaml").read_text() == "mine: 1"


def test_a_start_that_ended_before_its_first_checkpoint_binds_nobody(tmp_path):
    opened(tmp_path, seed=1)
    (tmp_path / "run" / "precision.txt").write_text("that of another width")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    opened(tmp_path, items("c"), seed=2)
    assert "seed: 2" in (tmp_path / "run" / "config.yaml").read_text()
    assert not (tmp_path / "run" / "precision.txt").exists()
    with pytest.raises(ValueError, match="seed: 2 then, 3 now"):
        opened(tmp_path, items("c"), seed=3)


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
    with pytest.raises(
        ValueError, match=r"optim\.lr: 0\.0008 then, 0\.5 now\n  seed: 0 then, 4 now\n  so at.*\n.*accept_changes"
    ):
        opened(tmp_path, **changed)
    opened(tmp_path, **changed, accept_changes=True)
    assert "optim.lr: 0.0008 then, 0.5 now" in capsys.readouterr().out
    opened(tmp_path, **changed)


def test_more_steps_say_what_the_learning_rate_does(tmp_path):
    optim = OptimConfig(schedule="linear", warmup_share=0.0)
    opened(tmp_path, train=TrainConfig(steps=101), optim=optim)
    (tmp_path / "run" / "checkpoints" / "step_00000051").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"at step 51 the learning rate is 0\.0006, where it was to be 0\.0004"):
        opened(tmp_path, train=TrainConfig(steps=201), optim=optim)


def test_items_that_come_go_or_change_places_are_named(tmp_path):
    opened(tmp_path, items("a", "b", "c"))
    opened(tmp_path, items("a", "b", "c"))
    for found, message in (
        (items("a", "b", "c", "d", "e"), r"2 it items are new \(d, e\)"),
        (items("a", "c"), "1 it items are gone"),
        (items("b", "a", "c"), "the 3 it items come in another order"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, found)
    opened(tmp_path, items("a"), accept_changes=True)
    opened(tmp_path, items("a"))


def test_a_run_from_before_items_were_noted_goes_on(tmp_path):
    opened(tmp_path)
    (tmp_path / "run" / ITEMS).unlink()
    opened(tmp_path, items("other"))
    with pytest.raises(ValueError, match="are not those it was begun with"):
        opened(tmp_path, items("another"))
