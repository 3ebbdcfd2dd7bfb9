"""The check of a grid's order: a change in a corner of the input must show in that corner of the grid.

Input axes are matched to the grid by size alone: axes in the grid's order, each a whole multiple of the grid's side.
Of several such matches the one whose corners change the fewest tokens is taken. The check only objects to clear
evidence: every corner has a strongest token of its own, and for half the corners or more it answers over twice as
strongly as the token where the grid puts that corner. An encoder that spreads a change over all tokens passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multicoca.testing.comparison import Collate
from multicoca.tokens import Tokens

_CLEARLY = 2.0  # ResNet, EfficientNet and MaxViT with random weights stay below 1.1 where their order is right


@dataclass(frozen=True)
class _Probe:
    """What the corners of one input do to the tokens.

    Attributes:
        name: of the input.
        axes: of the input, one per side of the grid.
        expected: the token of each corner by the grid.
        response: change of each token by corner, [corners, tokens].
    """

    name: str
    axes: tuple[int, ...]
    expected: Tensor
    response: Tensor

    def sharpness(self) -> float:
        """The share of the strongest token in the whole change, for the corner where it is least."""
        return float((self.response.amax(dim=1) / self.response.sum(dim=1).clamp(min=1e-30)).min())


def check_grid(encoder: nn.Module, collate: Collate, sample: dict[str, Tensor]) -> None:
    """The tokens lie in the order of the grid, the last side fastest."""
    inputs = collate([sample])
    with torch.no_grad():
        tokens = encoder(inputs)
        grid = tokens.grid
        if grid is None or max(grid) == 1:
            return
        probes = [
            _probe(encoder, inputs, tokens, name, axes)
            for name, value in inputs.items()
            if value.is_floating_point()
            for axes in _matching_axes(value, grid)
        ]
    if not probes:
        return
    probe = max(probes, key=_Probe.sharpness)
    strongest = probe.response.argmax(dim=1)
    if len(set(strongest.tolist())) < len(strongest):
        return
    corners = torch.arange(len(strongest))
    clear = probe.response[corners, strongest] > _CLEARLY * probe.response[corners, probe.expected]
    assert 2 * int(clear.sum()) < len(corners), (
        f"the tokens do not lie in the order of the grid {grid}: changes in the corners of '{probe.name}' (axes "
        f"{probe.axes} of [batch, ...]) show most in the tokens {strongest.tolist()}, expected "
        f"{probe.expected.tolist()}. The grid is (height, width) or (frames, height, width), its last side varies "
        "fastest: transpose before flattening, reorder the grid, or give None for a set"
    )


def _matching_axes(value: Tensor, grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the axes that the grid may divide, in the grid's order, or in any order if there are none."""

    def divisible(axes: tuple[int, ...]) -> bool:
        return all(value.shape[axis] % side == 0 for axis, side in zip(axes, grid, strict=True))

    in_order = itertools.combinations(range(1, value.ndim), len(grid))
    any_order = itertools.permutations(range(1, value.ndim), len(grid))
    return [axes for axes in in_order if divisible(axes)] or [axes for axes in any_order if divisible(axes)]


def _probe(encoder: nn.Module, inputs: dict[str, Tensor], tokens: Tokens, name: str, axes: tuple[int, ...]) -> _Probe:
    generator = torch.Generator().manual_seed(0)
    expected, responses = [], []
    for corner in _corners(tokens.grid):
        changed = inputs[name].clone()
        region = changed
        index = 0
        for axis, side, last in zip(axes, tokens.grid, corner, strict=True):
            size = changed.shape[axis]
            length = max(1, size // side // 2) if side > 1 else size  # the outer half of the outer cell
            region = region.narrow(axis, size - length if last else 0, length)
            index = index * side + (side - 1) * last
        region.add_(torch.randn(region.shape, generator=generator).to(region))
        difference = encoder({**inputs, name: changed}).values - tokens.values
        responses.append(difference[0].float().norm(dim=1))
        expected.append(index)
    return _Probe(name, axes, torch.tensor(expected), torch.stack(responses))


def _corners(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yields 0 for the beginning and 1 for the end of every side that has both."""
    return itertools.product(*((0, 1) if side > 1 else (0,) for side in grid))
