"""One gradient convention: one process with the whole batch and several with parts give the same gradients."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, small_model

from multicoca.data.sample import Batch
from multicoca.train.step import LossConfig, accumulate_gradients

WORKER = Path(__file__).with_name("gradient_worker.py")
DEADLINE_S = 120


def batches_of(rank: int, world_size: int) -> list[Batch]:
    """Two modalities, six pairs each with uneven texts, of which a rank takes its part."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for modality in ("a", "b"):
        x = torch.randn(6, 5, 6, generator=generator, dtype=torch.float64)
        ids = torch.randint(3, VOCAB, (6, 9), generator=generator)
        lengths = torch.randint(2, 10, (6,), generator=generator)
        own = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
        batches.append(Batch(modality, {"x": x[own]}, ids[own], lengths[own], ()))
    return batches


def gradients(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    model = small_model(pooler="cascade").double()
    config = LossConfig(contrastive_weight=1.0, captioning_weight=2.0)
    losses = accumulate_gradients(model, batches_of(rank, world_size), config)
    return {**{name: p.grad for name, p in model.named_parameters()}, **losses}


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_give_the_gradients_of_one(world_size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{WORKER.parent}:{WORKER.parent.parent}"}
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path)], env={**shared, "RANK": str(rank)})
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(DEADLINE_S) for process in ranks] == [0] * world_size
    finally:
        for process in ranks:
            process.kill()
    expected = gradients(0, 1)
    assert "heads.a.log_scale" in expected
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=f"{name} on rank {rank}")
    assert json.loads((tmp_path / "stop.json").read_text()) == [world_size, True]


def test_accumulated_batches_of_a_modality_count_their_tokens_together():
    config = LossConfig(contrastive_weight=0.0, captioning_weight=1.0)
    whole, parts = small_model().double(), small_model().double()
    accumulate_gradients(whole, batches_of(0, 1)[:1], config)
    accumulate_gradients(parts, [batches_of(rank, 3)[0] for rank in range(3)], config)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-12, msg=name)
