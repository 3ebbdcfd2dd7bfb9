"""The contract, for every modality of this project, on files that it draws itself, and what breaks it.

Each broken modality differs in one thing from one that keeps the contract, and stands next to a legal near miss;
`test_contract_grids.py` and `test_contract_processors.py` go on.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from multicoca_image import ImageProcessor, TimmEncoder, TimmFeatureMap
from multicoca_signal import SignalEncoder, SignalProcessor
from small_signal import SmallSignal, check, write_signals
from torch import nn

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import Modality
from multicoca.testing import check_modality
from multicoca.tokens import Tokens


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    return compose_config("train_shapes", []).modalities


@pytest.fixture(scope="module")
def modalities(specs) -> dict[str, Modality]:
    return build_modalities(specs)


@pytest.mark.parametrize("name", ["image", "video", "points"])
def test_the_contract_holds(name, specs, modalities, tmp_path):
    processor = modalities[name].processor
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}{processor.scene_suffix}")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    check_modality(modalities[name], files, lambda: build_modalities(specs, seed=1)[name].encoder)


TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        (TimmEncoder, "vit_base_patch32_clip_quickgelu_224", {"image_size_px": 64, "timm_options": TINY}),
        (TimmEncoder, "vit_base_patch16_siglip_224", {"image_size_px": 64, "timm_options": TINY}),
        (TimmEncoder, "eva02_base_patch14_224", {"image_size_px": 70, "timm_options": TINY}),
        (TimmFeatureMap, "convnext_atto", {"timm_options": {"depths": (1, 1, 1, 1)}}),
        # an untrained ResNet of timm starts with branches times zero, which no gradient passes
        (TimmFeatureMap, "resnet18", {"timm_options": {"layers": (1, 1, 1, 1), "zero_init_last": False}}),
        (TimmFeatureMap, "swin_tiny_patch4_window7_224", {"image_size_px": 64, "stage": 1}),
    ],
)
def test_the_contract_holds_for_encoders_of_timm(kind: type[nn.Module], name, settings, tmp_path):
    processor = ImageProcessor(size_px=settings.get("image_size_px", 64))
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.jpg")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    torch.manual_seed(0)
    check_modality(Modality("image", processor, kind(name, **settings)), files, lambda: kind(name, **settings))


@pytest.fixture(scope="module")
def signals(tmp_path_factory) -> list[Path]:
    return write_signals(tmp_path_factory.mktemp("signals"))


def test_a_modality_from_outside_keeps_the_contract(signals, tmp_path):
    drawn = []
    for index in range(3):
        drawn.append(tmp_path / f"{index}.npy")
        drawn[-1].write_bytes(SignalProcessor().render(draw_scene(0, "train", index)))
    check(drawn, SignalEncoder, rebuild=SignalEncoder)
    check(signals, rebuild=SmallSignal)


# samples and masks


class _SeesBatch(SmallSignal):
    def leave(self, values, mask):
        return Tokens(values + values.mean(dim=0), mask)


class _AttendsToPadding(SmallSignal):
    def mix(self, values, mask):
        return self.blocks[0](values)


class _HidesIt(SmallSignal):
    """Attends to padding in a branch that starts near zero, as LayerScale makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((32,), 1e-5))

    def mix(self, values, mask):
        return values + self.scale * self.blocks[0](values)


class _Mean(SmallSignal):
    def leave(self, values, mask):
        return Tokens(values.mean(dim=1, keepdim=True))


class _MaskedMean(SmallSignal):
    def leave(self, values, mask):
        return Tokens((values * mask[..., None]).sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None])


class _ForgetsMask(SmallSignal):
    def leave(self, values, mask):
        return Tokens(values)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (_SeesBatch, "other samples must not change"),
        (_AttendsToPadding, "must not change a sample's tokens"),
        (_HidesIt, "must not change a sample's tokens"),
        (_Mean, "must not change a sample's tokens"),
        (_ForgetsMask, "must not change the number of real tokens"),
    ],
)
def test_an_ignored_mask_is_found_in_files_of_one_length(encoder, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, encoder)


def test_a_masked_mean_is_legal(signals):
    check(signals, _MaskedMean)


class _FixedLength(SignalProcessor):
    """Pads every batch to the same length, so that a sample alone is padded, too."""

    def collate(self, samples):
        inputs = super().collate(samples)
        spare = 2048 - inputs["mask"].shape[1]
        return {name: nn.functional.pad(value, (0, spare)) for name, value in inputs.items()}


class _ReadsPadding(SmallSignal):
    """Lets in what the signal holds where its mask is False, which a later layer may still mask."""

    def enter(self, signal, mask):
        return signal


def test_padding_to_a_fixed_length_does_not_hide_an_ignored_mask(signals):
    for encoder in (_AttendsToPadding, _Mean):
        with pytest.raises(AssertionError, match="holds where the mask is False must not matter"):
            check(signals, lambda encoder=encoder: _unmasked_entry(encoder), _FixedLength())
    check(signals, SmallSignal, _FixedLength())
    check(signals, _MaskedMean, _FixedLength())


class _LeavesMaskOut(SignalProcessor):
    """Gives no mask where all is real, as it is in every batch of samples of one length."""

    def collate(self, samples):
        inputs = super().collate(samples)
        return {"signal": inputs["signal"]} if inputs["mask"].all() else inputs


class _WithoutMask(SmallSignal):
    """Takes a missing mask for one that is True everywhere."""

    def forward(self, inputs):
        every = torch.ones(inputs["signal"].shape, dtype=torch.bool)
        return super().forward({"mask": every, **inputs})


class _WithoutMaskAttendsToPadding(_WithoutMask, _AttendsToPadding):
    pass


def test_a_mask_that_is_left_out_where_all_is_real_does_not_hide_an_ignored_one(signals):
    check(signals, _WithoutMask, _LeavesMaskOut())
    with pytest.raises(AssertionError, match="must not change a sample's tokens"):
        check(signals, _WithoutMaskAttendsToPadding, _LeavesMaskOut())


class _Narrow(SignalProcessor):
    """Lets samples travel as whole numbers."""

    def collate(self, samples):
        inputs = super().collate(samples)
        return {**inputs, "signal": (inputs["signal"] * 1000).round().short()}

    def finish(self, inputs):
        signal = inputs["signal"]
        return {**inputs, "signal": signal if signal.is_floating_point() else signal / 1000}


class _FinishesTwice(_Narrow):
    def finish(self, inputs):
        return {**inputs, "signal": inputs["signal"] / 1000}


class _Overwrites(_Narrow):
    def finish(self, inputs):
        inputs["signal"] = super().finish(inputs)["signal"]
        return inputs


def test_samples_may_be_finished_on_the_device(signals):
    check(signals, SmallSignal, _Narrow())
    with pytest.raises(AssertionError, match="finish must leave as it is what is finished already"):
        check(signals, SmallSignal, _FinishesTwice())
    with pytest.raises(AssertionError, match="finish changed the inputs that it was given"):
        check(signals, SmallSignal, _Overwrites())


def _unmasked_entry(encoder: type[SmallSignal]) -> nn.Module:
    return type("Unmasked", (_ReadsPadding, encoder), {})()


class _MaskOfTokens(SignalProcessor):
    """Says which tokens are real, so that a sample has no axis of the mask's length."""

    def collate(self, samples):
        inputs = super().collate(samples)
        spare = -inputs["mask"].shape[1] % 64
        signal, mask = (nn.functional.pad(value, (0, spare)) for value in inputs.values())
        return {"signal": signal, "mask": mask.unflatten(1, (-1, 64)).any(2)}


class _TokenMask(SmallSignal):
    def forward(self, inputs):
        return super().forward({**inputs, "mask": inputs["mask"].repeat_interleave(64, dim=1)})


def test_a_check_of_padding_that_is_empty_asks_for_other_files(signals, tmp_path):
    with pytest.raises(AssertionError, match="padding is empty.*files of different sizes"):
        check(signals, _TokenMask, _MaskOfTokens())
    np.save(tmp_path / "short.npy", np.load(signals[0])[:300])
    check([*signals, tmp_path / "short.npy"], _TokenMask, _MaskOfTokens())


class _Inverted(SignalProcessor):
    def collate(self, samples):
        inputs = super().collate(samples)
        return {**inputs, "mask": ~inputs["mask"]}


def test_a_mask_that_marks_padding_is_found(signals):
    class Inverted(SmallSignal):
        def forward(self, inputs):
            return super().forward({**inputs, "mask": ~inputs["mask"]})

    with pytest.raises(AssertionError, match="True marks what is real"):
        check(signals, Inverted, _Inverted())


# statistics of the batch


class _Normed(SmallSignal):
    """Normalises each token [rows, width, 1] before the transformer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.token_norm = norm

    def mix(self, values, mask):
        return super().mix(self.token_norm(values.flatten(0, 1)[..., None]).view_as(values), mask)


class _Frozen(nn.BatchNorm1d):
    def train(self, mode: bool = True):
        return super().train(False)


class _MovingMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(32, 1))

    def forward(self, values):
        if self.training:
            self.center.lerp_(values.detach().mean(dim=(0, 2))[:, None], 0.1)
        return values - self.center


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (lambda: nn.BatchNorm1d(32), r"token_norm \(BatchNorm1d\).*GroupNorm"),
        (lambda: nn.SyncBatchNorm(32), r"token_norm \(SyncBatchNorm\)"),
        (lambda: nn.InstanceNorm1d(32, track_running_stats=True), r"token_norm \(InstanceNorm1d\)"),
        (_MovingMean, r"changes the buffers token_norm\.center"),
    ],
)
def test_statistics_of_the_batch_are_found(norm, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, lambda: _Normed(norm()))


@pytest.mark.parametrize("norm", [lambda: _Frozen(32), lambda: nn.GroupNorm(4, 32)], ids=["frozen", "group"])
def test_norms_without_statistics_of_the_batch_are_legal(norm, signals):
    check(signals, lambda: _Normed(norm()))


# what the state_dict holds


class _Table(SmallSignal):
    """Adds a table of positions that is a buffer or a plain tensor."""

    def __init__(self, table: torch.Tensor, persistent: bool | None) -> None:
        super().__init__()
        if persistent is None:
            self.table = table
        else:
            self.register_buffer("table", table, persistent=persistent)

    def mix(self, values, mask):
        return super().mix(values + self.table[: values.shape[1]], mask)


def _fixed_table() -> nn.Module:
    return _Table(torch.linspace(-1, 1, 128 * 32).view(128, 32).sin(), persistent=False)


@pytest.mark.parametrize("persistent", [False, None], ids=["buffer", "plain tensor"])
def test_a_random_table_that_is_not_saved_is_found(persistent, signals):
    def build():
        return _Table(torch.randn(128, 32), persistent)

    with pytest.raises(AssertionError, match="depends on table, which the state_dict does not hold.*rebuild="):
        check(signals, build)
    with pytest.raises(AssertionError, match="a new encoder.*gives other tokens.*one of table"):
        check(signals, build, rebuild=build)

    def seeded():
        torch.manual_seed(0)
        return build()

    with pytest.raises(AssertionError, match="rebuild gave an encoder of equal weights"):
        check(signals, build, rebuild=seeded)


def test_tables_that_are_saved_or_fixed_are_legal(signals):
    def saved():
        return _Table(torch.randn(128, 32), persistent=True)

    check(signals, saved)
    check(signals, saved, rebuild=saved)
    check(signals, _fixed_table, rebuild=_fixed_table)
    with pytest.raises(AssertionError, match="prove it: check_modality"):
        check(signals, _fixed_table)


# blocks


class _WithBlocks(nn.Module):
    def __init__(self, choose: Callable[[SmallSignal], list[nn.Module]]) -> None:
        super().__init__()
        self.encoder, self.width, self.choose = SmallSignal(), 32, choose

    @property
    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList(self.choose(self.encoder))

    def forward(self, inputs):
        return self.encoder(inputs)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda encoder: [], "`blocks` is empty"),
        (lambda encoder: [encoder.stem, copy.deepcopy(encoder.blocks[0])], r"no module of the encoder, at 1 \(Transf"),
    ],
    ids=["none", "a copy"],
)
def test_blocks_that_are_not_the_encoder_are_found(choose, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, lambda: _WithBlocks(choose))


def test_a_list_of_blocks_that_is_made_anew_is_legal(signals):
    check(signals, lambda: _WithBlocks(lambda encoder: [encoder.stem, *encoder.blocks]))
