"""Training goes on when a part is off: a loss, an encoder, the text half, a modality; and in narrow numbers."""

from collections.abc import Callable

import pytest
import torch
from conftest import VOCAB, small_model
from timm.optim import AdafactorBigVision

from multicoca.data.sample import Batch
from multicoca.distributed.parallelize import Engine
from multicoca.model.coca import CoCa
from multicoca.train.adafactor import Adafactor
from multicoca.train.optim import OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

FORMS = {"paper": {}, "open_clip": {"pooler": "shared", "cls_mask": "open_clip", "multimodal_block": "open_clip"}}


def freeze_text(model: CoCa) -> None:
    """Freezes all that makes a text's embedding."""
    text = model.text
    for part in (text.token_embedding, text.unimodal_blocks, text.norm_cls, model.text_projection):
        part.requires_grad_(False)
    text.position_embedding.requires_grad_(False)
    text.cls_embedding.requires_grad_(False)


CASES: dict[str, tuple[Callable[[CoCa], object], LossConfig, tuple[str, ...]]] = {
    "no contrastive loss": (lambda model: None, LossConfig(contrastive_weight=0.0), ("a", "b")),
    "no captioning loss": (lambda model: None, LossConfig(captioning_weight=0.0), ("a", "b")),
    "frozen encoders": (lambda model: model.encoders.requires_grad_(False), LossConfig(), ("a", "b")),
    "frozen text half": (freeze_text, LossConfig(), ("a", "b")),
    "absent modality": (lambda model: None, LossConfig(), ("a",)),
    "bf16": (lambda model: model.bfloat16(), LossConfig(), ("a", "b")),
    "fp16": (lambda model: model.half(), LossConfig(), ("a", "b")),
}


def batches_of(modalities: tuple[str, ...], dtype: torch.dtype, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """Four pairs of each modality, of which a rank takes its part."""
    generator = torch.Generator().manual_seed(3)
    own = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    batches = []
    for modality in modalities:
        x = torch.randn(4, 5, 6, generator=generator).to(dtype)
        ids = torch.randint(3, VOCAB, (4, 9), generator=generator)
        lengths = torch.randint(2, 10, (4,), generator=generator)
        batches.append(Batch(modality, {"x": x[own]}, ids[own], lengths[own], ()))
    return batches


def prepared(case: str, form: str = "paper") -> tuple[CoCa, LossConfig, tuple[str, ...], torch.dtype]:
    """Builds the model of a case."""
    change, loss, modalities = CASES[case]
    model = small_model(**FORMS[form])
    change(model)
    return model, loss, modalities, next(model.parameters()).dtype


@pytest.mark.parametrize("muon_lr", [None, 1e-2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_changes_what_it_should_and_nothing_else(case, form, muon_lr):
    model, loss, modalities, dtype = prepared(case, form)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizers = build_optimizers(model, OptimConfig(lr=1e-2, muon_lr=muon_lr, weight_decay=0.0))
    losses = accumulate_gradients(Engine(model, model), batches_of(modalities, dtype), loss)
    assert {tag.rsplit("/", 1)[1] for tag in losses} == set(modalities)
    assert all(value.isfinite() for value in losses.values())
    optimizer_step(list(model.parameters()), optimizers, [1e-2] * len(optimizers), 1.0)
    for name, value in model.named_parameters():
        assert value.isfinite().all(), name
        if not value.requires_grad:
            assert torch.equal(value, before[name]), name
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("text.multimodal") for name in changed) == (loss.captioning_weight > 0)
    assert ("text_projection.weight" in changed) == (loss.contrastive_weight > 0 and case != "frozen text half")
    assert any(name.startswith("heads.b") for name in changed) == ("b" in modalities)
    assert "heads.a.log_scale" in changed or loss.contrastive_weight == 0


def test_adafactor_is_timms():
    shapes = [(40, 64), (64, 40), (8, 64), (64,), (1,), (32, 3, 16, 16), (5, 20, 30)]
    torch.manual_seed(0)
    own = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in own]
    optimizers = [
        Adafactor(own, lr=1e-2, weight_decay=0.1),
        AdafactorBigVision(theirs, lr=1e-2, momentum=0.9, clipping_threshold=1.0, weight_decay=0.1),
    ]
    for _ in range(10):
        for one, other in zip(own, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
