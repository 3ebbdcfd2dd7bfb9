"""The contract, for every modality of this project, on files that it draws itself, and what breaks it.

Each broken modality differs in one thing from one that keeps the contract, and stands next to a legal near miss.
"""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from multicoca_image import ImageProcessor, TimmEncoder, TimmFeatureMap
from multicoca_signal import SignalEncoder, SignalProcessor
from PIL import Image
from torch import nn

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import Modality, UnreadableFileError
from multicoca.reading import refuse_broken
from multicoca.testing import check_modality
from multicoca.tokens import Tokens


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    return compose_config("train", []).modalities


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
    """Three signals of one length."""
    folder = tmp_path_factory.mktemp("signals")
    rng = np.random.default_rng(0)
    for index in range(3):
        np.save(folder / f"{index}.npy", rng.normal(size=1024).astype(np.float32))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        content = ImageProcessor().render(draw_scene(0, "train", index))
        (folder / f"{index}.jpg").write_bytes(content)
    return sorted(folder.iterdir())


class _Signal(SignalEncoder):
    """A small encoder that keeps the contract; its parts are what the broken ones change."""

    def __init__(self) -> None:
        super().__init__(width=32, num_layers=1, num_heads=2)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Tokens:
        signal, mask = inputs["signal"], inputs["mask"]
        spare = -signal.shape[1] % 64
        values = self.stem(nn.functional.pad(self.enter(signal, mask), (0, spare))[:, None]).transpose(1, 2)
        mask = nn.functional.pad(mask, (0, spare)).unflatten(1, (-1, 64)).any(2)
        return self.leave(self.norm(self.mix(values, mask)), mask)

    def enter(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return signal * mask

    def mix(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](values, src_key_padding_mask=~mask)

    def leave(self, values: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return Tokens(values, mask)


def check(
    files: list[Path],
    encoder: Callable[[], nn.Module] = _Signal,
    processor: Any = None,
    rebuild: Callable[[], nn.Module] | None = None,
) -> None:
    torch.manual_seed(0)
    check_modality(Modality("signal", processor or SignalProcessor(), encoder()), files, rebuild)


def test_a_modality_from_outside_keeps_the_contract(signals, tmp_path):
    drawn = []
    for index in range(3):
        drawn.append(tmp_path / f"{index}.npy")
        drawn[-1].write_bytes(SignalProcessor().render(draw_scene(0, "train", index)))
    check(drawn, SignalEncoder, rebuild=SignalEncoder)
    check(signals, rebuild=_Signal)


# samples and masks


class _SeesBatch(_Signal):
    def leave(self, values, mask):
        return Tokens(values + values.mean(dim=0), mask)


class _AttendsToPadding(_Signal):
    def mix(self, values, mask):
        return self.blocks[0](values)


class _HidesIt(_Signal):
    """Attends to padding in a branch that starts near zero, as LayerScale makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((32,), 1e-5))

    def mix(self, values, mask):
        return values + self.scale * self.blocks[0](values)


class _Mean(_Signal):
    def leave(self, values, mask):
        return Tokens(values.mean(dim=1, keepdim=True))


class _MaskedMean(_Signal):
    def leave(self, values, mask):
        return Tokens((values * mask[..., None]).sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None])


class _ForgetsMask(_Signal):
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


class _ReadsPadding(_Signal):
    """Lets in what the signal holds where its mask is False, which a later layer may still mask."""

    def enter(self, signal, mask):
        return signal


def test_padding_to_a_fixed_length_does_not_hide_an_ignored_mask(signals):
    for encoder in (_AttendsToPadding, _Mean):
        with pytest.raises(AssertionError, match="holds where the mask is False must not matter"):
            check(signals, lambda encoder=encoder: _unmasked_entry(encoder), _FixedLength())
    check(signals, _Signal, _FixedLength())
    check(signals, _MaskedMean, _FixedLength())


def _unmasked_entry(encoder: type[_Signal]) -> nn.Module:
    return type("Unmasked", (_ReadsPadding, encoder), {})()


class _MaskOfTokens(SignalProcessor):
    """Says which tokens are real, so that a sample has no axis of the mask's length."""

    def collate(self, samples):
        inputs = super().collate(samples)
        spare = -inputs["mask"].shape[1] % 64
        signal, mask = (nn.functional.pad(value, (0, spare)) for value in inputs.values())
        return {"signal": signal, "mask": mask.unflatten(1, (-1, 64)).any(2)}


class _TokenMask(_Signal):
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
    class Inverted(_Signal):
        def forward(self, inputs):
            return super().forward({**inputs, "mask": ~inputs["mask"]})

    with pytest.raises(AssertionError, match="True marks what is real"):
        check(signals, Inverted, _Inverted())


# statistics of the batch


class _Normed(_Signal):
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


# grids


class _Grid(nn.Module):
    """Patches [rows, columns] with attention; `arrange` lays [batch, rows, columns, width] out as tokens."""

    def __init__(self, patch: tuple[int, int], grid: tuple[int, ...] | None, arrange: Callable) -> None:
        super().__init__()
        self.width, self.grid, self.arrange = 32, grid, arrange
        self.patch = nn.Conv2d(3, 32, patch, patch)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)])

    def forward(self, inputs):
        values = self.arrange(self.patch(inputs["pixels"]).permute(0, 2, 3, 1)).flatten(1, 2)
        return Tokens(self.blocks[0](values), grid=self.grid)


@pytest.mark.parametrize(
    ("patch", "grid", "arrange", "message"),
    [
        ((16, 16), (4, 4), lambda values: values.transpose(1, 2), "order of the grid"),
        ((16, 16), (4, 4), lambda values: values.flip(1), "order of the grid"),
        ((16, 8), (4, 8), lambda values: values.transpose(1, 2), "order of the grid"),
        ((16, 8), (8, 4), lambda values: values, "order of the grid"),
        ((16, 16), (4, 3), lambda values: values, "product must be the number of tokens"),
        ((16, 16), (16,), lambda values: values, "must be \\(height, width\\)"),
    ],
)
def test_a_wrong_grid_is_found(patch, grid, arrange, message, pictures):
    with pytest.raises(AssertionError, match=message):
        check(pictures, lambda: _Grid(patch, grid, arrange), ImageProcessor(size_px=64))


def test_right_grids_and_none_are_legal(pictures):
    for patch, grid in (((16, 16), (4, 4)), ((16, 8), (4, 8)), ((64, 16), (1, 4))):
        check(pictures, lambda patch=patch, grid=grid: _Grid(patch, grid, lambda v: v), ImageProcessor(size_px=64))
    check(pictures, lambda: _Grid((16, 16), None, lambda v: v.transpose(1, 2)), ImageProcessor(size_px=64))


class _Rearranged(nn.Module):
    """Another encoder whose tokens are laid out anew."""

    def __init__(self, encoder: nn.Module, rearrange: Callable[[Tokens], Tokens]) -> None:
        super().__init__()
        self.encoder, self.rearrange = encoder, rearrange
        self.width, self.blocks = encoder.width, encoder.blocks

    def forward(self, inputs):
        return self.rearrange(self.encoder(inputs))


def _frames_last(tokens: Tokens) -> Tokens:
    order = torch.arange(tokens.values.shape[1]).unflatten(0, tokens.grid).permute(1, 2, 0).flatten()
    return Tokens(tokens.values[:, order], tokens.mask[:, order], tokens.grid)


def _columns_first(tokens: Tokens) -> Tokens:
    order = torch.arange(tokens.values.shape[1]).unflatten(0, tokens.grid).transpose(1, 2).flatten()
    return Tokens(tokens.values[:, order], tokens.mask[:, order], tokens.grid)


@pytest.mark.parametrize(
    "rearrange",
    [
        _frames_last,
        _columns_first,
        lambda tokens: Tokens(tokens.values, tokens.mask, (*tokens.grid[1:], tokens.grid[0])),
    ],
    ids=["frames last", "columns first", "another grid"],
)
def test_a_wrong_grid_of_a_video_is_found(rearrange, modalities, tmp_path):
    processor = modalities["video"].processor
    for index in range(2):
        (tmp_path / f"{index}.mp4").write_bytes(processor.render(draw_scene(0, "train", index)))
    encoder = copy.deepcopy(modalities["video"].encoder)
    with pytest.raises(AssertionError, match="order of the grid"):
        check(sorted(tmp_path.iterdir()), lambda: _Rearranged(encoder, rearrange), processor)


# what the state_dict holds


class _Table(_Signal):
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


# broken files


class _Careless(SignalProcessor):
    """Reads without a guard where `trust` says so."""

    def __init__(self, trust: Callable[[Path | bytes, bytes], bool], lazy: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "trust", trust)
        object.__setattr__(self, "lazy", lazy)

    def decode(self, file, suffix=""):
        return file if self.lazy else self._read(file)

    def preprocess(self, raw, train, generator):
        return super().preprocess(self._read(raw) if self.lazy else raw, train, generator)

    def thumbnail(self, raw):
        return super().thumbnail(self._read(raw) if self.lazy else raw)

    def _read(self, file):
        if isinstance(file, Path) and not file.exists():
            return np.load(file) if self.trust(file, b"") else super().decode(file)
        data = file if isinstance(file, bytes) else file.read_bytes()
        return np.load(io.BytesIO(data)) if self.trust(file, data) else super().decode(file)


def _missing(file, data) -> bool:
    return isinstance(file, Path) and not file.exists()


def _empty(file, data) -> bool:
    return isinstance(file, bytes) and data == b""


def _cut_path(file, data) -> bool:
    return isinstance(file, Path) and data.startswith(b"\x93NUMPY")


def _cut_bytes(file, data) -> bool:
    return isinstance(file, bytes) and len(data) > 100


@pytest.mark.parametrize("lazy", [False, True], ids=["decode", "preprocess"])
@pytest.mark.parametrize(
    ("trust", "message"),
    [
        (_missing, "a missing file raised FileNotFoundError"),
        (_empty, "an empty file, as bytes, raised EOFError"),
        (_cut_path, "the first 16 bytes of a file, as a path, raised ValueError"),
        (_cut_bytes, "the first .* bytes of a file, as bytes, raised ValueError"),
    ],
)
def test_other_exceptions_than_the_one_for_broken_files_are_found(trust, message, lazy, signals, monkeypatch):
    monkeypatch.setattr("pickle.dumps", lambda processor: processor)  # functions of a test cannot be pickled
    monkeypatch.setattr("pickle.loads", lambda processor: processor)
    with pytest.raises(AssertionError, match=f"{message}.*expected UnreadableFileError"):
        check(signals, processor=_Careless(trust, lazy))


class _RawFloats(SignalProcessor):
    """A format without a header: what is left of a cut file is still a signal."""

    def decode(self, file, suffix=""):
        with refuse_broken():
            data = file if isinstance(file, bytes) else file.read_bytes()
            return np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy() if len(data) > 30 else self._refuse()

    def _refuse(self):
        raise UnreadableFileError("fewer than 30 bytes")


class _Lenient(_RawFloats):
    def _refuse(self):
        return np.zeros(64, np.float32)


def test_a_cut_file_may_be_readable_but_not_an_empty_one(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        (tmp_path / f"{index}.npy").write_bytes(rng.normal(size=1024).astype("<f4").tobytes())
    check(sorted(tmp_path.iterdir()), processor=_RawFloats())
    with pytest.raises(AssertionError, match="an empty file, as bytes, gave a sample"):
        check(sorted(tmp_path.iterdir()), processor=_Lenient())


# what decode gave


class _CentersInPlace(SignalProcessor):
    def preprocess(self, raw, train, generator):
        raw -= 0.5
        return super().preprocess(raw, train, generator)


class _ClipsInPlace(SignalProcessor):
    """The second call changes nothing more, so only the thumbnail shows it."""

    def preprocess(self, raw, train, generator):
        np.clip(raw, -1, 1, out=raw)
        return super().preprocess(raw, train, generator)


class _DrawsInPlace(SignalProcessor):
    def thumbnail(self, raw):
        raw /= np.abs(raw).max() / 2
        return super().thumbnail(raw)


class _RemarksInPlace(SignalProcessor):
    def remarks(self, raw):
        raw.sort()
        return [f"the least value is {raw[0]}"]


class _ShowsInPlace(SignalProcessor):
    def show(self, writer, tag, raw, step):
        raw *= 2
        writer.add_histogram(tag, raw, step)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (_CentersInPlace, "preprocess in evaluation changed what decode gave"),
        (_ClipsInPlace, "preprocess in training, thumbnail: one of these changed what decode gave"),
        (_DrawsInPlace, "thumbnail changed what decode gave"),
        (_RemarksInPlace, "remarks changed what decode gave"),
        (_ShowsInPlace, "show changed what decode gave"),
    ],
)
def test_a_change_of_what_decode_gave_is_found(processor, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, processor=processor())


class _Copies(SignalProcessor):
    def preprocess(self, raw, train, generator):
        return super().preprocess(np.clip(raw, -1, 1), train, generator)

    def remarks(self, raw):
        return [f"the least value is {np.sort(raw)[0]}"]

    def show(self, writer, tag, raw, step):
        writer.add_histogram(tag, 2 * raw, step)


def test_work_on_a_copy_is_legal(signals):
    check(signals, processor=_Copies())


# blocks


class _WithBlocks(nn.Module):
    def __init__(self, choose: Callable[[_Signal], list[nn.Module]]) -> None:
        super().__init__()
        self.encoder, self.width, self.choose = _Signal(), 32, choose

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


# thumbnails


class _Draws(SignalProcessor):
    def __init__(self, picture: Any) -> None:
        super().__init__()
        object.__setattr__(self, "picture", picture)

    def thumbnail(self, raw):
        return self.picture


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("a picture", "thumbnail gave a builtins.str; it must be a PIL picture"),
        (Image.new("L", (8, 8)), "mode L; return picture.convert"),
        (Image.new("RGB", (0, 8)), "0 x 8 px; both must be at least 1"),
        (Image.new("RGB", (1920, 1080)), "1920 x 1080 px; it may have at most 1048576 pixels"),
    ],
)
def test_a_thumbnail_that_is_none_is_found(picture, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, processor=_Draws(picture))


@pytest.mark.parametrize("size", [(1, 1), (1224, 128)])
def test_tiny_thumbnails_and_strips_are_legal(size, signals):
    check(signals, processor=_Draws(Image.new("RGB", size)))
