"""The check of the state_dict: a new encoder that loads it gives the same tokens.

A copy of the encoder cannot show a random buffer that is not saved, for the copy has it too. So where tokens depend on
tensors outside the state_dict, a second encoder is built.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from multicoca.testing.comparison import assert_same_tokens
from multicoca.tokens import Tokens

_HELD = "the state_dict must hold all that the output depends on"


def check_state(
    encoder: nn.Module, inputs: dict[str, Tensor], tokens: Tokens, rebuild: Callable[[], nn.Module] | None
) -> None:
    """Loads the state_dict into a copy with other weights, and into a new encoder if `rebuild` is given.

    Args:
        encoder: one that has not run, for what a first call leaves in a cache is no part of its state.
        inputs: for the encoder.
        tokens: what it makes of them in evaluation.
        rebuild: see `check_modality`.
    """
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    _check_loading(other, encoder, inputs, tokens, _HELD)
    unsaved = _unsaved_tensors(encoder)
    names = ", ".join(unsaved)
    matters = bool(unsaved) and _depends_on(encoder, unsaved, inputs, tokens)
    if rebuild is None:
        assert not matters, (
            f"the output depends on {names}, which the state_dict does not hold. Register what is drawn at random or "
            "learned as a persistent buffer or parameter; if all of it follows from the settings, as sine-cosine "
            "positions do, prove it: check_modality(..., rebuild=a function that builds the encoder with another seed)"
        )
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        new = rebuild()
    assert isinstance(new, nn.Module), f"rebuild gave {type(new).__name__}; it must build an encoder, an nn.Module"
    if matters:
        pairs = zip(encoder.parameters(), new.parameters(), strict=False)
        assert not all(torch.equal(one, two) for one, two in pairs), (
            f"rebuild gave an encoder of equal weights, so it cannot show whether {names} would differ. It must build "
            "with another seed, as build_modalities(specs, seed=1) does, and without pretrained weights"
        )
    _check_loading(
        new,
        encoder,
        inputs,
        tokens,
        f"a new encoder that has loaded the state_dict gives other tokens; {_HELD}. Register what is drawn at random "
        f"as a persistent buffer or parameter{f', one of {names}' if names else ''}",
    )


def _check_loading(new: nn.Module, encoder: nn.Module, inputs: dict[str, Tensor], tokens: Tokens, message: str) -> None:
    new.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        values = new.eval()(inputs).values
    assert_same_tokens(values, tokens.values, message)


def _unsaved_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Returns the fractional buffers that are not saved and the tensors that are plain attributes, by path."""
    saved = encoder.state_dict().keys()
    tensors = {name: value for name, value in encoder.named_buffers(remove_duplicate=False) if name not in saved}
    for path, module in encoder.named_modules():
        attributes = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        tensors |= {f"{path}.{name}".lstrip("."): value for name, value in attributes.items()}
    plain = {name: value for name, value in tensors.items() if value.layout == torch.strided}
    return {name: value for name, value in plain.items() if value.is_floating_point() or value.is_complex()}


def _depends_on(encoder: nn.Module, tensors: dict[str, Tensor], inputs: dict[str, Tensor], tokens: Tokens) -> bool:
    """Says whether noise on these tensors changes the output."""
    encoder = copy.deepcopy(encoder).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        path, _, attribute = name.rpartition(".")
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        setattr(encoder.get_submodule(path), attribute, value.detach() + noise)
    with torch.no_grad():
        return not torch.equal(encoder(inputs).values, tokens.values)
