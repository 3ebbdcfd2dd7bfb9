"""Muon takes the same steps on shards as on whole matrices, bit for bit, with few collectives and torch's state."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from multicoca.train.muon import Muon, run_staggered

# rows that ranks share unevenly, fewer rows than ranks, and more matrices than ranks
SHAPES = [(12, 12), (7, 5), (5, 7), (2, 6), (1, 4), (12, 12), (9, 4), (7, 5), (16, 3)]
WITHOUT_GRADIENT = 5
MESHES = [(3,), (2, 2)]
DTYPES = [torch.bfloat16, torch.float32]


def matrices() -> nn.Sequential:
    """Returns layers with weights of these shapes, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(columns, rows, bias=False) for rows, columns in SHAPES))


def groups(model: nn.Module) -> list[dict]:
    weights = list(model.parameters())
    return [{"params": weights[::2], "weight_decay": 0.1}, {"params": weights[1::2], "weight_decay": 0.0, "lr": 0.05}]


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, share: Callable[[Tensor], Tensor] = lambda gradient: gradient
) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for number, weight in enumerate(model.parameters()):
            gradient = share(torch.randn(weight.shape, generator=generator))
            weight.grad = None if number == WITHOUT_GRADIENT else gradient
        optimizer.step()


def torchs(groups: list[dict]) -> torch.optim.Muon:
    return torch.optim.Muon(groups, 0.02, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_steps_on_shards_are_bit_for_bit_those_on_whole_matrices(mesh, tmp_path):
    world_size = torch.Size(mesh).numel()
    run_ranks(Path(__file__).with_name("muon_worker.py"), world_size, str(tmp_path), *map(str, mesh))
    for dtype in DTYPES:
        model = matrices()
        optimizer = torchs(groups(model)) if dtype == torch.bfloat16 else Muon(groups(model), 0.02, dtype)
        take_steps(model, optimizer)
        weights, state = torch.load(tmp_path / f"{dtype}.pt", weights_only=True)
        for number, (before, weight) in enumerate(zip(matrices().parameters(), model.parameters(), strict=True)):
            assert torch.equal(weights[number], weight), (dtype, number)
            assert torch.equal(before, weight) == (number == WITHOUT_GRADIENT)
        expected = optimizer.state_dict()["state"]
        torch.testing.assert_close(state, expected, rtol=0, atol=0)
        assert len(expected) == len(SHAPES) - 1


def test_on_64_ranks_a_step_takes_two_collectives_for_as_many_matrices_as_share_a_copy():
    run_ranks(Path(__file__).with_name("muon_collectives_worker.py"), 1)


def test_the_next_gather_starts_before_the_present_computation():
    events = []

    def task(number):
        events.append(f"gather {number}")
        yield
        events.append(f"compute and scatter {number}")
        yield
        events.append(f"apply {number}")

    run_staggered(task(number) for number in (1, 2, 3))
    assert events == ["gather 1", "gather 2", "compute and scatter 1", "gather 3", "compute and scatter 2", "apply 1",
                      "compute and scatter 3", "apply 2", "apply 3"]  # fmt: skip
