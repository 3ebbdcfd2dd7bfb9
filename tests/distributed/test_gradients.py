"""One gradient convention: one process with the whole batch and several with parts give the same gradients."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, small_model
from ranks import run_ranks

from multicoca.data.sample import Batch
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.train.step import LossConfig, accumulate_gradients

WORKER = Path(__file__).with_name("gradient_worker.py")
PAIRS = 96  # of each modality: 1 to 4 ranks share them equally, in up to 8 micro-batches each


@dataclass(frozen=True)
class Case:
    """How the same step is done."""

    parallel: ParallelConfig = ParallelConfig()
    micro_batches: int = 1
    double: bool = True
    kind: str = "softmax"
    losses: str = "both"

    @property
    def plain(self) -> "Case":
        """The case of one process that it is compared with."""
        return Case(double=self.double, kind=self.kind, losses=self.losses)


LOSSES = {
    "both": {"contrastive_weight": 1.0, "captioning_weight": 2.0},
    "contrastive": {"captioning_weight": 0.0},
    "captioning": {"contrastive_weight": 0.0, "label_smoothing": 0.1, "z_loss": 1e-3},
}


FSDP = ParallelConfig("fsdp")
SETTINGS = {
    "ddp": ParallelConfig(),
    "fsdp": FSDP,
    "zero2": ParallelConfig("fsdp", reshard_after_forward=False),
    "checkpointed": ParallelConfig("fsdp", checkpoint_activations=True),
    "hsdp": ParallelConfig("fsdp", replicate=2),
}


def cases(world_size: int) -> dict[str, Case]:
    """All cases that so many ranks can do."""
    micro_batches = (1, 2, 8)
    found = {}
    for name, parallel in SETTINGS.items():
        if name != "hsdp" or world_size == 4:
            found |= {f"{name}, {n}": Case(parallel, n) for n in micro_batches}
    found |= {"ddp fp32": Case(micro_batches=2, double=False), "fsdp fp32": Case(FSDP, 2, False)}
    for name, parallel in (("ddp", ParallelConfig()), ("fsdp", FSDP)):
        found |= {f"{name} sigmoid, {n}": Case(parallel, n, kind="sigmoid") for n in (1, 2)}
        found |= {f"{name} {losses} only": Case(parallel, 2, losses=losses) for losses in ("contrastive", "captioning")}
    return found


def batches_of(rank: int, world_size: int, micro_batches: int = 1, double: bool = True) -> list[Batch]:
    """Two modalities with uneven texts, of which a rank takes its part, in micro-batches."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for modality in ("a", "b"):
        x = torch.randn(PAIRS, 5, 6, generator=generator, dtype=torch.float64)
        x = x if double else x.float()
        ids = torch.randint(3, VOCAB, (PAIRS, 9), generator=generator)
        lengths = torch.randint(2, 10, (PAIRS,), generator=generator)
        own = torch.arange(PAIRS).chunk(world_size)[rank]
        for rows in own.chunk(micro_batches):
            batches.append(Batch(modality, {"x": x[rows]}, ids[rows], lengths[rows], ()))
    return batches


def gradients(case: Case, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Returns losses and gradients of a step, whole."""
    model = small_model(pooler="cascade", contrastive=case.kind)
    model = model.double() if case.double else model
    engine = Engine(model, model)
    if world_size > 1 or case.parallel.strategy == "fsdp":
        engine = parallelize(model, case.parallel, torch.device("cpu"))
    own = batches_of(rank, world_size, case.micro_batches, case.double)
    found = accumulate_gradients(engine, own, LossConfig(**LOSSES[case.losses]))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.full_tensor() if engine.is_sharded else parameter.grad
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_way_of_doing_a_step_gives_the_gradients_of_the_plain_one(world_size, tmp_path):
    run_ranks(WORKER, world_size, str(tmp_path))
    expected = {case: gradients(case, 0, 1) for case in {case.plain for case in cases(world_size).values()}}
    assert "heads.a.log_scale" in expected[Case()]
    assert "heads.a.logit_bias" in expected[Case(kind="sigmoid")]
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert list(found) == list(cases(world_size))
        for label, case in cases(world_size).items():
            assert found[label].keys() == expected[case.plain].keys()
            for name, value in expected[case.plain].items():
                tolerance = 1e-9 if case.double else 1e-5
                error = (found[label][name] - value).abs().max()
                assert error <= tolerance * value.abs().max(), (label, name, rank, error)


def test_without_the_whole_batch_each_micro_batch_has_its_own_negatives():
    alone = small_model().double()
    losses = [
        accumulate_gradients(Engine(alone, alone), [batch], LossConfig())["loss/contrastive/a"]
        for batch in batches_of(0, 1, 2)[:2]
    ]
    for whole, expected in ((False, sum(losses) / 2), (True, None)):
        model = small_model().double()
        found = accumulate_gradients(Engine(model, model), batches_of(0, 1, 2)[:2], LossConfig(whole_batch=whole))
        if expected is not None:
            torch.testing.assert_close(found["loss/contrastive/a"], expected)
        else:
            assert found["loss/contrastive/a"] > sum(losses) / 2 + 0.5


def test_micro_batches_with_dropout_draw_the_same_numbers_in_both_passes():
    def step(key: tuple[int, ...]) -> list[torch.Tensor]:
        model = small_model().double().train()
        for encoder in model.encoders.values():
            encoder.blocks[0] = torch.nn.Sequential(encoder.blocks[0], torch.nn.Dropout(0.5))
        seen = []
        model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.source.detach()))
        embedded = model.embed_pairs
        firsts = []
        model.embed_pairs = lambda *args: firsts.append(embedded(*args)) or firsts[-1]
        accumulate_gradients(Engine(model, model), batches_of(0, 1, 2), LossConfig(), key=key)
        return firsts, seen

    firsts, seen = step((5, 7))
    assert len(firsts) == len(seen) == 4
    for first, second in zip(firsts, seen, strict=True):
        torch.testing.assert_close(first.source, second, rtol=0, atol=0)
    assert not torch.equal(seen[0], step((5, 8))[1][0])  # there is dropout
