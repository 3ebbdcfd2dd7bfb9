"""How the checks compare: samples to the bit, tokens up to the rounding of sums taken in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from multicoca.tokens import Tokens

Collate = Callable[[Sequence[dict[str, Tensor]]], dict[str, Tensor]]  # from samples to what an encoder takes

_TOLERANCE = 2e-4  # relative to the size of the tokens, in fp32


def real_tokens(tokens: Tokens, row: int) -> Tensor:
    """Returns the tokens of a sample without padding, [tokens, width]."""
    return tokens.values[row] if tokens.mask is None else tokens.values[row][tokens.mask[row]]


def assert_same_tokens(got: Tensor, expected: Tensor, message: str) -> None:
    """Asserts that token vectors are equal up to rounding, whatever their scale."""
    size = expected.square().mean().sqrt().item()
    difference = (got - expected).abs().max().item() if got.shape == expected.shape else float("nan")
    message = f"{message} (got a difference of {difference:.2g} in tokens of the size {size:.2g}, expected none)"
    torch.testing.assert_close(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE * size, msg=message)


def assert_same_sample(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], message: str) -> None:
    """Asserts that two samples are equal to the bit."""
    assert got.keys() == expected.keys(), f"{message}: got the keys {list(got)}, expected {list(expected)}"
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{message} ('{name}' differs)"
        )
