"""The check of masks: real tokens depend neither on padding nor on the other samples of a batch.

It needs samples of different lengths. Where the files give none, a sample is cut along the axis that its mask counts.
Masks are recognised by their type alone: a boolean input [batch, length, ...], True where it is real.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multicoca.testing.comparison import Collate, assert_same_tokens, real_tokens

_SHORT = 0.75  # a sample below this share of the longest is short enough to have fewer tokens
_DEAD = 1e-3  # parameters that start below this, such as LayerScale, hide what their branch does
_AWAKE = 0.1


def check_padding(encoder: nn.Module, collate: Collate, samples: Sequence[dict[str, Tensor]]) -> None:
    """Whatever shares a batch with a sample, and whatever its padding holds, its real tokens are the same."""
    encoder = _with_live_branches(encoder)
    natural = collate(samples)
    samples = _of_different_lengths(collate, samples)
    inputs = collate(samples)
    with torch.no_grad():
        together = encoder(inputs)
        for row, sample in enumerate(samples):
            alone = encoder(collate([sample]))
            single, batched = real_tokens(alone, 0), real_tokens(together, row)
            assert single.shape == batched.shape, (
                f"padding must not change the number of real tokens: sample {row} has {len(single)} alone and "
                f"{len(batched)} in a batch. Give Tokens a mask that is False where a token holds only padding"
            )
            message = (
                "padding and other samples must not change a sample's tokens: mask padding in attention and in means, "
                "and normalise each sample alone"
            )
            assert_same_tokens(batched, single, message)
        _check_content_of_padding(encoder, natural)
        _check_content_of_padding(encoder, inputs)


def _check_content_of_padding(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Other values where a mask is False change no real token."""
    generator = torch.Generator().manual_seed(0)
    changed = dict(inputs)
    for name, value in inputs.items():
        padded = _padded(value, _masks(inputs)) if value.is_floating_point() else None
        if padded is not None:
            changed[name] = torch.where(padded, 3 * torch.randn(value.shape, generator=generator).to(value), value)
    names = [name for name in inputs if changed[name] is not inputs[name]]
    if not names:
        return
    expected, got = encoder(inputs), encoder(changed)
    fix = f"what {', '.join(names)} holds where the mask is False must not matter, but the encoder lets it in"
    for row in range(len(expected.values)):
        before, after = real_tokens(expected, row), real_tokens(got, row)
        assert before.shape == after.shape, f"{fix}; it changes the number of real tokens"
        assert_same_tokens(after, before, f"{fix}. Mask attention and means, or zero padding by the mask on entry")


def _of_different_lengths(collate: Collate, samples: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Returns the samples, with a cut one if a mask says that all have about the same length."""
    masks = _masks(collate(samples))
    if not masks:  # where all are of one length a mask may be left out
        first = next(iter(samples[0].values()))
        cut = _cut(samples[0], length=len(first)) if first.ndim else samples[0]
        return [*samples, cut] if _has_mask(collate, samples[0], cut) else list(samples)
    for name, mask in masks.items():
        assert mask.any(dim=1).all(), (
            f"'{name}' is False everywhere for a sample; True marks what is real. A boolean input [batch, length] is a "
            "mask: give other flags another type"
        )
    counts = {name: mask.sum(dim=1) for name, mask in masks.items()}
    if any(count.min() <= _SHORT * count.max() for count in counts.values()):
        return list(samples)
    for name, count in counts.items():
        longest = int(count.argmax())
        cut = _cut(samples[longest], length=int(count[longest]))
        if _is_shorter(collate, name, samples[longest], cut):
            return [*samples, cut]
    assert any(count.min() < count.max() for count in counts.values()), (
        f"the check of padding is empty: collate gives the mask {', '.join(masks)}, but all {len(samples)} files give "
        "samples of the same length, and none could be cut. Give check_modality files of different sizes; if all "
        "samples always have one size, leave the mask out"
    )
    return list(samples)


def _masks(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the masks as [batch, length]; one with more axes is True where any of them is."""
    masks = {name: value for name, value in inputs.items() if value.dtype == torch.bool and value.ndim >= 2}
    return {name: mask.flatten(2).any(dim=2) if mask.ndim > 2 else mask for name, mask in masks.items()}


def _cut(sample: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Keeps the first half of the first axis of this length in every tensor, and of numbers that give the length."""
    half = max(1, length // 2)
    result = {}
    for name, value in sample.items():
        axes = [axis for axis, size in enumerate(value.shape) if size == length]
        if axes:
            value = value.narrow(axes[0], 0, half).clone()
        elif value.ndim == 0 and not value.is_floating_point() and value == length:
            value = torch.full_like(value, half)
        result[name] = value
    return result


def _has_mask(collate: Collate, sample: dict[str, Tensor], cut: dict[str, Tensor]) -> bool:
    try:
        return bool(_masks(collate([sample, cut])))
    except Exception:  # what was cut is no sample of this processor
        return False


def _is_shorter(collate: Collate, name: str, sample: dict[str, Tensor], cut: dict[str, Tensor]) -> bool:
    try:
        mask = _masks(collate([sample, cut]))[name]
        collate([cut])
    except Exception:  # what was cut is no sample of this processor; the caller then asks for files
        return False
    return 0 < int(mask[1].sum()) < int(mask[0].sum())


def _padded(value: Tensor, masks: dict[str, Tensor]) -> Tensor | None:
    """Returns where a tensor is padding, broadcast to its axes, or None if no mask fits it or nothing is padding."""
    for axis in range(1, value.ndim):
        fitting = [mask for mask in masks.values() if mask.shape == (len(value), value.shape[axis])]
        if not fitting:
            continue
        real = torch.stack(fitting).any(dim=0)
        shape = [1] * value.ndim
        shape[0], shape[axis] = real.shape
        padded = ~real.view(shape)
        axes_alike = sum(size == value.shape[axis] for size in value.shape[1:])
        # of two axes of one length, the padded one is filled with a constant
        if padded.any() and (axes_alike == 1 or len(value.masked_select(padded).unique()) == 1):
            return padded
    return None


def _with_live_branches(encoder: nn.Module) -> nn.Module:
    """Returns a copy in which parameters that start near zero are random: a branch times zero would hide its fault."""
    encoder = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.is_floating_point() and parameter.abs().max() < _DEAD:
                parameter.copy_(_AWAKE * torch.randn(parameter.shape, generator=generator))
    return encoder
