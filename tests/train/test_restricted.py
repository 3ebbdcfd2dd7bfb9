"""A checkpoint from elsewhere runs nothing, and damage falls back to the checkpoint before it."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from multicoca.train.checkpoint import Checkpoints
from multicoca.train.restricted import Reader


class Attack:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def parts() -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1)]
    model(torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    return model, optimizers


@pytest.fixture
def saved(tmp_path) -> Path:
    """The checkpoints of steps 1 and 2, whose weights differ."""
    model, optimizers = parts()
    checkpoints = Checkpoints(tmp_path / "checkpoints", model, optimizers)
    for step in (1, 2):
        with torch.no_grad():
            model.weight.fill_(step)
        checkpoints.save(step, float(step))
        checkpoints.finish()
    return tmp_path / "checkpoints"


def loaded(folder: Path) -> tuple[int, float, list[str]]:
    model, optimizers = parts()
    step, _, torn = Checkpoints(folder, model, optimizers).load_latest()
    return step, model.weight[0, 0].item(), torn


def test_a_whole_checkpoint_is_restored(saved):
    assert loaded(saved) == (2, 2.0, [])


def test_metadata_that_calls_something_runs_nothing(saved, tmp_path):
    trace = tmp_path / "trace"
    (saved / "step_00000002" / ".metadata").write_bytes(pickle.dumps(Attack(trace)))
    step, weight, torn = loaded(saved)
    assert (step, weight) == (1, 1.0)
    assert "it is not called" in torn[0]
    assert not trace.exists()


def test_an_entry_that_calls_something_runs_nothing(tmp_path, saved):
    trace = tmp_path / "trace"
    shutil.rmtree(saved / "step_00000002")
    model, optimizers = parts()
    checkpoints = Checkpoints(tmp_path / "other", model, optimizers)
    state = checkpoints._state()
    state["optimizer"]["param_groups"][0]["lr"] = Attack(trace)
    state["progress"] = torch.tensor([2, 2.0], dtype=torch.float64)
    dcp.save(state, checkpoint_id=saved / "step_00000002", no_dist=True)
    trace.unlink(missing_ok=True)
    step, weight, torn = loaded(saved)
    assert (step, weight) == (1, 1.0)
    assert "step_00000002" in torn[0]
    assert not trace.exists()


def test_every_damage_of_the_metadata_falls_back_to_the_checkpoint_before(saved, tmp_path):
    whole = (saved / "step_00000002" / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(0)
    fell_back = 0
    for number in range(60):
        place, value = (int(torch.randint(0, high, (), generator=generator)) for high in (len(whole), 256))
        damaged = whole[:place] if number % 3 == 0 else whole[:place] + bytes([value]) + whole[place + 1 :]
        folder = tmp_path / f"copy{number}"
        shutil.copytree(saved, folder)
        (folder / "step_00000002" / ".metadata").write_bytes(damaged)
        try:
            step, weight, _ = loaded(folder)
        except ValueError as error:  # the damage looks like another model's metadata
            if "is of another model" not in str(error):
                raise
            continue
        assert (step, weight) in ((1, 1.0), (2, 2.0))
        fell_back += step == 1
    assert fell_back > 20


def test_what_is_no_metadata_is_refused(saved):
    (saved / "step_00000002" / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(pickle.UnpicklingError, match="damaged|is a dict"):
        Reader(saved / "step_00000002").read_metadata()
