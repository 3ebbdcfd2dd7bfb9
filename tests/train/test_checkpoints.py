"""Checkpoints: whole or not there, read on other numbers of ranks, torn ones left out; bad steps and averages."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_model
from ranks import run_ranks
from test_gradients import batches_of
from torch.distributed.checkpoint.api import CheckpointException

from multicoca.distributed.parallelize import Engine
from multicoca.train.checkpoint import Checkpoints, step_of, whole_checkpoints
from multicoca.train.optim import Average, OptimConfig, build_optimizers, encoder_layers, rate_scales, set_tuning
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

WORKER = Path(__file__).with_name("reshard_worker.py")


class Run:
    """A small run with an average, whose checkpoints lie in a folder."""

    def __init__(self, folder: Path, modalities: tuple[str, ...] = ("a", "b"), **kept):
        self.model = small_model(pooler="cascade").double()
        self.optimizers = build_optimizers(self.model, OptimConfig(lr=1e-2))
        self.average = Average(self.model, 0.9)
        self.checkpoints = Checkpoints(folder, self.model, self.optimizers, self.average, **kept)
        self.modalities = modalities

    def steps(self, first: int, last: int) -> list[float]:
        found = []
        for step in range(first, last):
            own = [batch for batch in batches_of(0, 1) if batch.modality in self.modalities]
            losses = accumulate_gradients(Engine(self.model, self.model), own, LossConfig(), key=(0, step))
            optimizer_step(list(self.model.parameters()), self.optimizers, [1e-2], 1.0)
            self.average.update(step)
            found.append(float(sum(losses.values())))
            self.checkpoints.save(step + 1, 0.0)
        self.checkpoints.finish()
        return found

    def state(self) -> dict[str, torch.Tensor]:
        average = {f"average.{name}": value for name, value in self.average.state_dict().items()}
        return {**{name: value.detach().clone() for name, value in self.model.state_dict().items()}, **average}


def test_a_torn_checkpoint_is_left_out_and_the_one_before_goes_on(tmp_path):
    run = Run(tmp_path, keep_last=3)
    losses = run.steps(0, 4)
    for tear in (
        lambda newest: next(newest.glob("*.distcp")).write_bytes(b"cut short"),
        lambda newest: (newest / ".metadata").unlink(),
    ):
        again = Run(tmp_path, keep_last=3)
        tear(whole_checkpoints(tmp_path)[-1])
        step, _, messages = again.checkpoints.load_latest()
        assert step == 3
        assert "step_00000004 is torn" in messages[0]
        assert again.steps(3, 4) == losses[3:]
    for path in whole_checkpoints(tmp_path):
        (path / ".metadata").unlink()
    with pytest.raises(ValueError, match="no checkpoint of this run can be read"):
        Run(tmp_path).checkpoints.load_latest()


def test_a_torn_checkpoint_does_not_count_among_those_that_stay(tmp_path):
    run = Run(tmp_path, keep_last=1, keep_every=2)
    run.steps(0, 4)
    (tmp_path / "step_00000004" / ".metadata").unlink()
    again = Run(tmp_path, keep_last=1)
    assert again.checkpoints.load_latest()[0] == 2
    again.steps(2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004.torn"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), PermissionError(13, "denied"), OSError(5, "disk")]
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_torn_one(tmp_path, monkeypatch, error):
    Run(tmp_path, keep_last=3).steps(0, 2)

    def fails(*arguments, **settings):
        raise CheckpointException("loading", {0: (error, None)})

    again = Run(tmp_path)
    monkeypatch.setattr("multicoca.train.checkpoint.dcp.load", fails)
    with pytest.raises(ValueError, match="step_00000002 cannot be read"):
        again.checkpoints.load_latest()
    assert len(whole_checkpoints(tmp_path)) == 2


def test_what_is_being_written_is_finished_after_an_error(tmp_path):
    run = Run(tmp_path)

    def fail():
        with run.checkpoints.finishing():
            run.checkpoints.save(7, 0.0)
            raise KeyError("of something else")

    with pytest.raises(KeyError, match="of something else"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]


def test_the_newest_and_every_nth_checkpoint_stay(tmp_path):
    Run(tmp_path, keep_last=2, keep_every=3).steps(0, 8)
    assert [step_of(path) for path in whole_checkpoints(tmp_path)] == [3, 6, 7, 8]


def test_parameters_without_a_gradient_so_far_resume_to_the_bit(tmp_path):
    def go(folder: Path, stop: int | None) -> dict[str, torch.Tensor]:
        run = Run(folder, ("a",))
        run.steps(0, 2)
        if stop is not None:
            run = Run(folder)
            assert run.checkpoints.load_latest()[0] == 2
        run.modalities = ("a", "b")
        run.steps(2, 4)
        return run.state()

    whole, resumed = go(tmp_path / "whole", None), go(tmp_path / "resumed", 2)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_another_model_is_named_by_its_parameters(tmp_path):
    Run(tmp_path).steps(0, 1)
    other = small_model(pooler="cascade", width=16).double()
    checkpoints = Checkpoints(tmp_path, other, build_optimizers(other, OptimConfig()))
    with pytest.raises(ValueError, match=r"another model; .*\(24, 32\)|another model; .* there, .* here"):
        checkpoints.load_latest()


def test_no_room_for_a_checkpoint_says_what_is_left(tmp_path):
    run = Run(tmp_path)
    run.steps(0, 1)
    (tmp_path / "step_00000002.part").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be written to .* MiB free.*newest whole one is step_00000001"):
        run.steps(1, 2)
    assert [step_of(path) for path in whole_checkpoints(tmp_path)] == [1]


def test_a_run_goes_on_with_two_four_and_one_ranks(tmp_path):
    for world_size, last in ((2, 2), (4, 4)):
        run_ranks(WORKER, world_size, str(tmp_path), str(last))
    run = Run(tmp_path / "checkpoints")
    assert run.checkpoints.load_latest()[0] == 4
    resumed = [*torch.load(tmp_path / "losses_2.pt"), *torch.load(tmp_path / "losses_4.pt"), *run.steps(4, 6)]
    alone = Run(tmp_path / "alone").steps(0, 6)
    assert resumed == pytest.approx(alone, rel=1e-6)


def test_where_every_rank_has_the_whole_model_the_first_alone_writes_it(tmp_path):
    run_ranks(Path(__file__).parents[1] / "distributed" / "checkpoint_worker.py", 2, str(tmp_path))


@pytest.mark.parametrize("optim", [{}, {"name": "adafactor"}, {"muon_lr": 1e-2}])
@pytest.mark.parametrize("wrong", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(optim, wrong):
    run_model = small_model().double()
    optimizers = build_optimizers(run_model, OptimConfig(lr=1e-2, weight_decay=0.1, **optim))
    average = Average(run_model, 0.9)

    def step(number, usable=None):
        own = list(run_model.parameters())
        accumulate_gradients(Engine(run_model, run_model), batches_of(0, 1), LossConfig(), key=(number,))
        if usable is False and wrong == "gradient":
            own[0].grad[0], usable = torch.nan, None
        usable = None if usable is None else torch.tensor(usable)
        norm, used = optimizer_step(own, optimizers, [1e-2] * len(optimizers), 1.0, usable)
        average.update(number, used)
        assert all(value.grad is None for value in own)
        return bool(norm.isfinite()), bool(used)

    def state():
        kept = [value for optimizer in optimizers for of in optimizer.state.values() for value in of.values()]
        return [value.detach().clone() for value in (*run_model.parameters(), *kept, *average.state_dict().values())]

    assert step(0, True) == (True, True)
    before = state()
    assert step(1, False) == (wrong == "loss", False)
    for value, one in zip(state(), before, strict=True):
        assert torch.equal(value, one)
    assert step(2, True) == (True, True)
    assert not any(map(torch.equal, state()[:5], before[:5]))


def test_the_average_follows_and_can_stand_in(tmp_path):
    run = Run(tmp_path)
    own = run.state()
    run.steps(0, 3)
    now = run.state()
    name = "text_projection.weight"
    assert not torch.equal(now[f"average.{name}"], now[name])
    with run.average.in_place():
        assert torch.equal(run.model.text_projection.weight, now[f"average.{name}"])
    assert torch.equal(run.model.text_projection.weight, now[name])
    decays, expected = [min(0.9, (1 + step) / (10 + step)) for step in range(3)], own[name]
    again = Run(tmp_path / "again")
    for step, decay in enumerate(decays):
        again.steps(step, step + 1)
        expected = expected + (again.state()[name] - expected) * (1 - decay)
    torch.testing.assert_close(now[f"average.{name}"], expected)
    shutil.rmtree(tmp_path / "again")


def test_tuning_modes_train_what_they_say():
    def trained(mode: str, **settings) -> set[str]:
        model = small_model(pooler="cascade")
        set_tuning(model, mode, **settings)
        return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trained("poolers") == {"poolers"}
    assert "encoders" not in trained("frozen_encoder")
    assert trained("last_blocks", last_blocks=1) == trained("all")
    with pytest.raises(ValueError, match="choose one of all, poolers"):
        trained("half")
    with pytest.raises(ValueError, match="has 1 blocks"):
        trained("last_blocks", last_blocks=2)


def test_rates_fall_from_layer_to_layer_and_differ_by_modality():
    model = small_model()
    scales = rate_scales(model, OptimConfig(layer_decay=0.5, lr_scale={"a": 0.1}))
    before, block, after = encoder_layers(model.encoders["a"])
    assert (before, after) == ([], [])
    assert {scales[p] for p in block} == {0.1 * 0.5}
    assert {scales[p] for p in model.encoders["b"].parameters()} == {0.5}
    assert {scales[p] for p in model.heads["a"].parameters()} == {0.1}
    assert {scales[p] for p in model.text.parameters()} == {1.0}
    with pytest.raises(ValueError, match="lr_scale names c; the modalities are a, b"):
        rate_scales(model, OptimConfig(lr_scale={"c": 1.0}))


def test_encoders_stay_as_they_are_while_they_are_frozen():
    model = small_model()
    optimizers = build_optimizers(model, OptimConfig(lr=1e-2))
    for frozen in (True, False):
        before = [p.clone() for p in model.encoders.parameters()]
        model.freeze_encoders(frozen)
        accumulate_gradients(Engine(model, model), batches_of(0, 1, double=False), LossConfig())
        optimizer_step(list(model.parameters()), optimizers, [1e-2], 1.0)
        assert all(torch.equal(p, q) for p, q in zip(model.encoders.parameters(), before, strict=True)) == frozen


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_optimizer_lowers_the_loss(name):
    model = small_model()
    optimizers = build_optimizers(model, OptimConfig(name=name))
    losses = []
    for step in range(20):
        found = accumulate_gradients(Engine(model, model), batches_of(0, 1, double=False), LossConfig(), key=(step,))
        losses.append(float(sum(found.values())))
        optimizer_step(list(model.parameters()), optimizers, [1e-2], 1.0)
    assert losses[-1] < 0.8 * losses[0]
