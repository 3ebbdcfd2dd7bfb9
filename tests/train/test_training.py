"""The training loop: it learns, resumes to the same place, stops in order, and its parts are checked."""

import json
import math
import os
import signal
from itertools import pairwise

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import small_model

from multicoca.cli.compose import compose_config
from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps
from multicoca.data.sample import Batch
from multicoca.data.shapes.source import ShapesWorld
from multicoca.distributed.parallelize import Engine
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.eval.suite import evaluate
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.checkpoint import whole_checkpoints
from multicoca.train.loop import TrainConfig, train, uses_all_parameters
from multicoca.train.muon import Muon
from multicoca.train.optim import OptimConfig, build_optimizers, learning_rates, parameter_groups, set_tuning
from multicoca.train.precision import choose_precision, kept_muon_precision, kept_precision
from multicoca.train.step import LossConfig, accumulate_gradients


@pytest.fixture(scope="module")
def run_parts(tmp_path_factory):
    """Builds everything for a run of a few modalities on a small shapes world."""
    root = tmp_path_factory.mktemp("shapes")

    def build(modalities: list[str], train_items: int = 48, seed: int = 0):
        config = compose_config("train_shapes", [f"modality=[{','.join(modalities)}]"])
        tokenizer_of = {}
        from multicoca.build import build_processors

        processors = build_processors(config.modalities)
        source = ShapesWorld(train_items, test_items=24, composition_items=4, captions_per_item=2, root=root)
        listing = source.list_items(processors, seed)
        texts = [t for items in listing.of("train").values() for item in items for t in item.texts]
        tokenizer_of["it"] = TextTokenizer.learn(texts, 2000, config.model.context_length)
        bundle = build_bundle(config.spec, tokenizer_of["it"])
        steps = Steps(listing.of("train"), bundle.processors, bundle.tokenizer, 16, seed)
        return bundle, listing, steps

    return build


def go(bundle, listing, steps, folder, num_steps, evaluate_now=None, muon_lr=None, broken_share=0.05, **changes):
    ledger = Ledger(folder / "ledger.jsonl")
    config = TrainConfig(steps=num_steps, precision="fp32", log_every=5, **changes)
    share = BrokenShare(listing.listed["train"], broken_share, ledger.file)
    optim = OptimConfig(lr=2e-3, muon_lr=muon_lr, warmup_share=0.1)
    return train(bundle.network, steps, folder, config, optim, LossConfig(), ledger, share, 0, evaluate_now)


@pytest.mark.parametrize("modalities", [["image"], ["image", "video"], ["points"], ["image", "video", "points"]])
def test_it_learns_alone_and_jointly(run_parts, tmp_path, modalities):
    bundle, listing, steps = run_parts(modalities, train_items=16)
    outcome = go(bundle, listing, steps, tmp_path, 80)
    assert outcome.steps == 80
    assert outcome.signal_number is None
    bundle.network.eval()
    for batch in steps[0]:
        inputs = bundle.placed(batch.modality, batch.inputs)
        outputs = bundle.network(batch.modality, inputs, batch.ids, batch.lengths)
        ranks = (outputs.source @ outputs.text.T).argsort(dim=1, descending=True)[:, 0]
        assert (ranks == torch.arange(16)).float().mean() > 0.8, batch.modality
        logits, targets = bundle.network.caption_logits(batch.modality, inputs, batch.ids, batch.lengths)
        right = (logits.argmax(1) == targets).float().mean()
        assert right > 0.75, batch.modality


@pytest.mark.parametrize("muon_lr", [None, 2e-3])
def test_a_resumed_run_is_the_run_never_stopped(run_parts, tmp_path, muon_lr):
    whole, listing, steps = run_parts(["image"])
    go(whole, listing, steps, tmp_path / "whole", 8, muon_lr=muon_lr)
    stopped, *_ = run_parts(["image"])
    first = go(stopped, listing, steps, tmp_path / "stopped", 8, lambda step, *_: os.kill(os.getpid(), signal.SIGTERM),
               muon_lr=muon_lr, evaluate_every=3)  # fmt: skip
    assert first.signal_number == signal.SIGTERM
    assert 3 <= first.steps < 8
    resumed, *_ = run_parts(["image"])
    assert go(resumed, listing, steps, tmp_path / "stopped", 8, muon_lr=muon_lr).steps == 8
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Late:
    """A write that is done no sooner than somebody waits for it."""

    def __init__(self, future):
        self.result = future.result

    def done(self):
        return False


def test_too_many_broken_files_stop_a_run_when_its_checkpoint_is_being_written(run_parts, tmp_path, monkeypatch):
    bundle, listing, steps = run_parts(["image"])
    items = {item.key: item for item in listing.of("train")["image"]}
    broken = items[steps[2][0].keys[0]]
    broken.file.write_bytes(b"broken")
    start_to_write = dcp.async_save
    monkeypatch.setattr(dcp, "async_save", lambda *arguments, **options: Late(start_to_write(*arguments, **options)))
    with pytest.raises(ValueError, match="1 of 48 image training items cannot be used, more than the share of 0"):
        go(bundle, listing, steps, tmp_path, 8, broken_share=0.0, checkpoint_every=1)
    assert [path.name for path in whole_checkpoints(tmp_path / "checkpoints")] == ["step_00000001", "step_00000002"]
    assert [json.loads(line)["key"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()] == [broken.key]


def test_evaluation_counts_what_it_used(run_parts, tmp_path):
    bundle, listing, _ = run_parts(["image"])
    listing.of("test")["image"][3].file.write_bytes(b"broken")
    results, answers, problems = evaluate(bundle, listing, EvaluationConfig(gallery=8, draws=2, captions_per_item=1), 0)
    assert results["protocol"]["precision"] == "float32 on cpu, without autocast or TF32"
    found = results["modalities"]["image"]
    assert (found["used"], found["listed"]) == (23, 24)
    assert [problem.key for problem in problems] == ["test/000003"]
    assert len(answers["image"].captions) == 23
    assert 0 <= found["captioning"]["attributes"] <= 1
    assert found["zero_shot"]["color"]["classes"] == 7


def test_captions_do_not_depend_on_the_references(run_parts):
    from dataclasses import replace

    from multicoca.eval.evaluator import answer

    bundle, listing, _ = run_parts(["image"])
    items = [item for item in listing.of("test")["image"] if item.file.stat().st_size > 100][:6]
    changed = [replace(item, texts=("something else",)) for item in items]
    assert answer(bundle, "image", items, 4).captions == answer(bundle, "image", changed, 4).captions


def grouped(model):
    return {kind: parameters for (kind, _, _), parameters in parameter_groups(model, OptimConfig()).items()}


def test_every_trainable_parameter_is_in_one_group():
    model = small_model(pooler="cascade")
    groups = grouped(model)
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert all(p.dim() == 2 for p in groups["hidden"])
    assert any(p is model.text.token_embedding.weight for p in groups["rest"])
    assert {id(p) for p in groups["matrices"]} == {id(head.caption_head.weight) for head in model.heads.values()}


def test_only_matrices_decay_and_muon_takes_the_hidden_ones():
    model = small_model(pooler="cascade")
    groups = grouped(model)
    (alone,) = build_optimizers(model, OptimConfig(weight_decay=0.3))
    assert sorted(group["weight_decay"] for group in alone.param_groups) == [0.0, 0.3, 0.3]
    decayed = [p for group in alone.param_groups if group["weight_decay"] for p in group["params"]]
    assert {id(p) for p in decayed} == {id(p) for p in (*groups["hidden"], *groups["matrices"])}
    adamw, muon = build_optimizers(model, OptimConfig(weight_decay=0.3, muon_lr=1e-3))
    assert isinstance(muon, torch.optim.Muon)
    assert muon.param_groups[0]["params"] == groups["hidden"]
    assert muon.param_groups[0]["weight_decay"] == 0.3
    assert groups["matrices"] in [group["params"] for group in adamw.param_groups]


def rates_of(step, **changes):
    config = OptimConfig(lr=1.0, warmup_share=0.1, **changes)
    return learning_rates(step, 100, config, build_optimizers(small_model(), config))


def test_the_schedule_warms_up_and_ends_at_its_floor():
    rates = [rates_of(step, final_lr_share=0.2)[0] for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 2)) / 2)
    assert rates[-1] == pytest.approx(0.2, abs=1e-3)
    assert rates_of(55, muon_lr=3.0) == [rates_of(55)[0], 3 * rates_of(55)[0]]


@pytest.mark.parametrize(("schedule", "late"), [("linear", 0.5), ("constant", 1.0), ("rsqrt", math.sqrt(10 / 56))])
def test_other_schedules(schedule, late):
    assert rates_of(4, schedule=schedule)[0] == pytest.approx(0.5)
    assert rates_of(55, schedule=schedule)[0] == pytest.approx(late)


def test_precision_is_as_asked_or_measured():
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu, 32)[0] is None
    assert choose_precision("bf16", cpu, 32)[0] == torch.bfloat16
    dtype, reason = choose_precision("auto", cpu, 64)
    assert dtype in (None, torch.bfloat16)
    assert "times as fast" in reason
    with pytest.raises(ValueError, match=r"train\.precision is 'half'"):
        choose_precision("half", cpu, 32)


def test_kernels_are_deterministic_in_a_run_that_asks_for_it_and_only_there(run_parts, tmp_path, monkeypatch):
    bundle, listing, steps = run_parts(["image"])
    seen, plain = [], accumulate_gradients

    def watched(*arguments, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return plain(*arguments, **options)

    monkeypatch.setattr("multicoca.train.loop.accumulate_gradients", watched)
    go(bundle, listing, steps, tmp_path / "free", 1)
    assert not any(seen)
    seen.clear()
    go(bundle, listing, steps, tmp_path / "bound", 1, deterministic=True)
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch):
    cpu, speeds = torch.device("cpu"), iter([2.0, 1.0])
    monkeypatch.setattr("multicoca.train.precision._seconds", lambda *_: next(speeds))
    assert kept_precision("auto", cpu, 32, tmp_path)[0] == torch.bfloat16
    monkeypatch.setattr("multicoca.train.precision._seconds", lambda *_: pytest.fail("it is not measured again"))
    dtype, reason = kept_precision("auto", cpu, 32, tmp_path)
    assert (dtype, reason) == (torch.bfloat16, "bf16 autocast: 2.00 times as fast as fp32 here")


def test_muon_iterates_in_the_faster_precision_and_a_resumed_run_keeps_its_own(tmp_path, monkeypatch):
    cpu, speeds = torch.device("cpu"), iter([1.0, 3.0])
    monkeypatch.setattr("multicoca.train.precision._seconds", lambda *_: next(speeds))
    assert kept_muon_precision("auto", cpu, 32, tmp_path)[0] == torch.float32
    monkeypatch.setattr("multicoca.train.precision._seconds", lambda *_: pytest.fail("it is not measured again"))
    assert kept_muon_precision("auto", cpu, 32, tmp_path)[0] == torch.float32
    assert kept_muon_precision("bf16", cpu, 32, tmp_path)[0] == torch.bfloat16
    (tmp_path / "before" / "checkpoints" / "step_00000200").mkdir(parents=True)  # of a version without a choice
    assert kept_muon_precision("auto", cpu, 32, tmp_path / "before")[0] == torch.bfloat16


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_in_fp32_gives_what_torchs_does_but_for_rounding(shape, monkeypatch):
    def updated(optimizer_of):
        parameter = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        optimizer = optimizer_of([{"params": [parameter], "weight_decay": 0.1}])
        for step in range(3):
            parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
            optimizer.step()
        return parameter.detach()

    def torchs(groups):
        return torch.optim.Muon(groups, lr=0.02, adjust_lr_fn="match_rms_adamw")

    rounded = updated(torchs)
    assert torch.equal(updated(lambda groups: Muon(groups, 0.02)), rounded)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # torch's own iteration, in fp32
    plain = updated(torchs)
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(updated(lambda groups: Muon(groups, 0.02, torch.float32)), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainConfig, {"checkpoint_every": 0}, r"train\.checkpoint_every is 0; expected at least 1"),
        (TrainConfig, {"steps": -3}, r"train\.steps is -3"),
        (TrainConfig, {"tuning": "half"}, "choose one of all, poolers"),
        (TrainConfig, {"tuning": "frozen_then_all"}, r"train\.frozen_steps 0; steps with frozen encoders go with"),
        (TrainConfig, {"frozen_steps": 5}, r"train\.tuning is 'all' and train\.frozen_steps 5"),
        (OptimConfig, {"lr": -1.0}, r"optim\.lr is -1\.0; expected a number of at least 0"),
        (OptimConfig, {"beta2": 2.0}, r"optim\.beta2 is 2\.0"),
        (OptimConfig, {"warmup_share": 3.0}, r"optim\.warmup_share is 3\.0; expected a share"),
        (OptimConfig, {"muon_precision": "fp8"}, r"optim\.muon_precision is 'fp8'"),
        (OptimConfig, {"name": "sgd"}, "choose adamw or adafactor"),
        (OptimConfig, {"schedule": "step"}, "choose one of cosine, linear"),
        (OptimConfig, {"layer_decay": 0.0}, "expected a decay above 0"),
        (EvaluationConfig, {"batch_size": 0}, r"evaluation\.batch_size is 0"),
        (EvaluationConfig, {"templates": "typo"}, "typo"),
    ],
)
def test_settings_that_cannot_be_are_named_at_once(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_the_temperature_learns_on_from_its_limit():
    head = small_model().heads["a"]
    with torch.no_grad():
        head.log_scale.fill_(5.0)
    assert float(head.logit_scale().detach()) == pytest.approx(100)
    head.limit_scale()
    (gradient,) = torch.autograd.grad(head.logit_scale(), head.log_scale)
    assert float(gradient) == pytest.approx(100)


def weights_of(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("wrong", ["loss/captioning/image", "gradient_norm"])
def test_steps_that_are_not_finite_are_left_out_and_too_many_stop_the_run(run_parts, tmp_path, monkeypatch, wrong):
    bundle, listing, steps = run_parts(["image"])
    bad, plain = {2, 4, 5, 6}, accumulate_gradients

    def spoiled(engine, batches, *settings):
        losses, step = plain(engine, batches, *settings), settings[2][-1]
        if step in bad and wrong in losses:
            losses[wrong] = torch.tensor(torch.inf)
        elif step in bad:
            next(bundle.network.parameters()).grad.fill_(torch.nan)
        return losses

    monkeypatch.setattr("multicoca.train.loop.accumulate_gradients", spoiled)
    monkeypatch.setattr("multicoca.train.loop._count_flops", lambda *_: None)
    states = []
    monkeypatch.setattr("multicoca.train.loop._note_problems", lambda *_: states.append(weights_of(bundle.network)))
    with pytest.raises(ValueError, match=r"3 steps in a row had no finite.*newest checkpoint is from before them"):
        go(bundle, listing, steps, tmp_path, 20, max_bad_steps=3, checkpoint_every=4)
    same = [torch.equal(one, other) for one, other in pairwise(states)]
    assert same == [False, True, False, True, True, True, False]  # the last step was on its way when it was noticed
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]


@pytest.mark.parametrize("tuning", ["all", "poolers", "frozen_encoder", "last_blocks"])
@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pooler", ["cascade", "parallel", "shared", "none"])
@pytest.mark.parametrize("form", [{}, {"caption_heads": "shared", "adapters": "where_needed", "cls_mask": "open_clip",
                                       "multimodal_block": "open_clip"}])  # fmt: skip
def test_with_one_modality_and_both_losses_a_pass_reaches_all_that_is_trained(tuning, contrastive, pooler, form):
    if (tuning, pooler) == ("poolers", "none"):
        return  # there is nothing to train
    assert uses_all_parameters(1, LossConfig(), TrainConfig(tuning=tuning))
    model = small_model(encoders=("a",), pooler=pooler, contrastive=contrastive, **form)
    set_tuning(model, tuning, last_blocks=1)
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(4, 5, 6, generator=generator)}
    ids, lengths = torch.randint(3, 50, (4, 9), generator=generator), torch.tensor([9, 4, 2, 7])
    accumulate_gradients(Engine(model, model), [Batch("a", inputs, ids, lengths, ())], LossConfig())
    assert [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_where_a_pass_may_leave_something_out_it_is_looked_for():
    assert not uses_all_parameters(2, LossConfig(), TrainConfig())
    assert not uses_all_parameters(1, LossConfig(contrastive_weight=0.0), TrainConfig())
    assert not uses_all_parameters(1, LossConfig(captioning_weight=0.0), TrainConfig())
    assert not uses_all_parameters(1, LossConfig(), TrainConfig(tuning="frozen_then_all", frozen_steps=3))
