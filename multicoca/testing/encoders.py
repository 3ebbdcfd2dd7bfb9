"""The checks of an encoder's parts and of the `Tokens` that it returns."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from multicoca.testing.comparison import Collate
from multicoca.tokens import Tokens


def check_blocks(encoder: nn.Module) -> None:
    """`blocks` holds modules of the encoder, at least one."""
    blocks, modules = list(encoder.blocks), set(encoder.modules())
    assert blocks, (
        "`blocks` is empty; it must hold the units for activation checkpointing, compilation, sharding and layer-wise "
        "learning rates. List the encoder's layers in an nn.ModuleList; a small encoder may be one block"
    )
    foreign = [f"{index} ({type(block).__name__})" for index, block in enumerate(blocks) if block not in modules]
    assert not foreign, (
        f"`blocks` holds what is no module of the encoder, at {', '.join(foreign)}; each block must be one of "
        "encoder.modules(), the very module that runs and no copy"
    )


def check_tokens(encoder: nn.Module, inputs: dict[str, Tensor], num_samples: int) -> Tokens:
    """Returns the tokens of all samples together."""
    for name, value in inputs.items():
        assert len(value) == num_samples, (
            f"collate gave '{name}' with {len(value)} rows for {num_samples} samples; give a row per sample"
        )
    with torch.no_grad():
        tokens, again = encoder(inputs), encoder(inputs)
    assert isinstance(tokens, Tokens), f"the encoder returned {type(tokens).__name__}; it must return Tokens"
    batch, count, width = tokens.values.shape
    assert batch == num_samples, f"the encoder gave {batch} rows for {num_samples} samples"
    assert width == encoder.width, f"tokens have width {width}, the encoder says {encoder.width}"
    assert tokens.values.isfinite().all(), "tokens must be finite"
    torch.testing.assert_close(tokens.values, again.values, rtol=0, atol=0, msg="evaluation must be deterministic")
    if tokens.mask is not None:
        assert tokens.mask.shape == (batch, count), (
            f"the mask is {list(tokens.mask.shape)}; it must be [batch, tokens], here {[batch, count]}"
        )
        assert tokens.mask.dtype == torch.bool, f"the mask is {tokens.mask.dtype}; it must be boolean"
        assert tokens.mask.any(dim=1).all(), "every sample needs at least one real token, True in the mask"
    if tokens.grid is not None:
        assert _is_grid(tokens.grid), (
            f"the grid is {tokens.grid}; it must be (height, width) or (frames, height, width), or None for a set"
        )
        product = torch.Size(tokens.grid).numel()
        assert product == count, (
            f"grid {tokens.grid} does not hold {count} tokens but {product}; its product must be the number of tokens. "
            "Give None where class tokens or the like come with the grid"
        )
    return tokens


def _is_grid(grid: tuple[int, ...]) -> bool:
    return len(grid) in (2, 3) and min(grid) >= 1


def check_statistics(encoder: nn.Module, collate: Collate, samples: Sequence[dict[str, Tensor]]) -> None:
    """Nothing in the encoder takes statistics of the batch in training. A norm that `train()` leaves frozen is fine."""
    fix = (
        "a sample's tokens then depend on its batch, and the statistics differ between processes. Use GroupNorm or "
        "LayerNorm, or override train() so that the norm stays in evaluation mode"
    )
    modules = copy.deepcopy(encoder).train().named_modules()
    norms = [
        f"{name or 'the encoder'} ({type(module).__name__})"
        for name, module in modules
        if module.training
        and (isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats))
    ]
    assert not norms, f"statistics of the batch are taken in training by {', '.join(norms)}; expected none: {fix}"
    first, second = (_buffers_after_training(encoder, collate([one, one])) for one in samples[:2])
    changed = [
        name
        for name, value in first.items()
        if name in second and value.shape == second[name].shape and not torch.equal(value, second[name])
    ]
    assert not changed, f"a training step on other samples changes the buffers {', '.join(changed)}: {fix}"


def _buffers_after_training(encoder: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    encoder = copy.deepcopy(encoder).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder(inputs)
    return dict(encoder.named_buffers())


def check_precision(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Tokens are finite in bf16."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(inputs).values.isfinite().all(), "tokens must be finite under bf16 autocast"
