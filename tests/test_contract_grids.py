"""Grids in a wrong order or of a wrong size, for pictures and videos."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from multicoca_image import ImageProcessor
from small_signal import check
from torch import nn

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.tokens import Tokens


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        content = ImageProcessor().render(draw_scene(0, "train", index))
        (folder / f"{index}.jpg").write_bytes(content)
    return sorted(folder.iterdir())


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


def _reordered(tokens: Tokens, order: torch.Tensor) -> Tokens:
    mask = None if tokens.mask is None else tokens.mask[:, order]
    return Tokens(tokens.values[:, order], mask, tokens.grid)


def _frames_last(tokens: Tokens) -> Tokens:
    order = torch.arange(tokens.values.shape[1]).unflatten(0, tokens.grid).permute(1, 2, 0).flatten()
    return _reordered(tokens, order)


def _columns_first(tokens: Tokens) -> Tokens:
    order = torch.arange(tokens.values.shape[1]).unflatten(0, tokens.grid).transpose(1, 2).flatten()
    return _reordered(tokens, order)


@pytest.mark.parametrize(
    "rearrange",
    [
        _frames_last,
        _columns_first,
        lambda tokens: Tokens(tokens.values, tokens.mask, (*tokens.grid[1:], tokens.grid[0])),
    ],
    ids=["frames last", "columns first", "another grid"],
)
def test_a_wrong_grid_of_a_video_is_found(rearrange, tmp_path):
    video = build_modalities(compose_config("train_shapes", ["modality=[image,video]"]).modalities)["video"]
    for index in range(2):
        (tmp_path / f"{index}.mp4").write_bytes(video.processor.render(draw_scene(0, "train", index)))
    encoder = copy.deepcopy(video.encoder)
    with pytest.raises(AssertionError, match="order of the grid"):
        check(sorted(tmp_path.iterdir()), lambda: _Rearranged(encoder, rearrange), video.processor)
