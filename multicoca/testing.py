"""The contract of a modality as a function that anyone can run: `check_modality(modality, files)`.

Every check asserts one promise of `multicoca.modality` and says which one was broken.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from multicoca.modality import Encoder, Modality, Processor, UnreadableFileError
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.model.losses import contrastive_loss
from multicoca.tokens import Tokens

_TOLERANCE = 2e-4  # of outputs of the order of 1 in fp32, for sums taken in another order


def check_modality(modality: Modality, files: Sequence[Path]) -> None:
    """Checks a modality against the contract.

    Args:
        modality: freshly built; its encoder is trained for one step on a copy.
        files: at least two readable files, best of different sizes.

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    assert len(files) >= 2, "check_modality needs at least two files"
    processor, encoder = modality.processor, modality.encoder
    assert isinstance(processor, Processor), f"{type(processor).__name__} lacks a part of multicoca.modality.Processor"
    assert isinstance(encoder, Encoder), f"{type(encoder).__name__} lacks a part of multicoca.modality.Encoder"
    assert isinstance(encoder, nn.Module), "the encoder must be an nn.Module"
    samples = _check_processor(processor, files)
    encoder = copy.deepcopy(encoder).eval()
    tokens = _check_tokens(encoder, processor, samples)
    _check_padding(encoder, processor, samples, tokens)
    _check_precision(encoder, processor.collate(samples))
    _check_state(encoder, modality, processor.collate(samples), tokens)
    _check_training(modality, processor.collate(samples))


def _check_processor(processor: Processor, files: Sequence[Path]) -> list[dict[str, Tensor]]:
    assert all(s == s.lower() and s.startswith(".") for s in processor.suffixes), "suffixes: lower case, with a dot"
    assert all(file.suffix.lower() in processor.suffixes for file in files), "a file's suffix is not in `suffixes`"
    restored = pickle.loads(pickle.dumps(processor))  # what data workers do
    samples = []
    for file in files:
        raw = processor.decode(file)
        first, again = (restored.preprocess(raw, True, torch.Generator().manual_seed(5)) for _ in range(2))
        _assert_equal(first, again, "the same generator must give the same training sample")
        plain = processor.preprocess(raw, False, torch.Generator().manual_seed(1))
        other = processor.preprocess(raw, False, torch.Generator().manual_seed(2))
        _assert_equal(plain, other, "a sample for evaluation must not depend on the generator")
        from_bytes = processor.preprocess(
            processor.decode(file.read_bytes(), file.suffix), False, torch.Generator().manual_seed(1)
        )
        _assert_equal(plain, from_bytes, "a file and its bytes must give the same sample")
        assert processor.thumbnail(raw).mode == "RGB", "a thumbnail must be an RGB picture"
        samples.append(plain)
    for broken in (b"", b"this is no such file"):
        try:
            processor.preprocess(processor.decode(broken, files[0].suffix), False, torch.Generator())
        except UnreadableFileError:
            continue
        raise AssertionError("a broken file must raise UnreadableFileError")
    return samples


def _check_tokens(encoder: nn.Module, processor: Processor, samples: list[dict[str, Tensor]]) -> Tokens:
    inputs = processor.collate(samples)
    assert all(len(value) == len(samples) for value in inputs.values()), "every input must have a row per sample"
    with torch.no_grad():
        tokens, again = encoder(inputs), encoder(inputs)
    assert isinstance(tokens, Tokens), "the encoder must return Tokens"
    batch, count, width = tokens.values.shape
    assert batch == len(samples), f"the encoder gave {batch} rows for {len(samples)} samples"
    assert width == encoder.width, f"tokens have width {width}, the encoder says {encoder.width}"
    assert tokens.values.isfinite().all(), "tokens must be finite"
    torch.testing.assert_close(tokens.values, again.values, rtol=0, atol=0, msg="evaluation must be deterministic")
    if tokens.mask is not None:
        assert tokens.mask.shape == (batch, count), "the mask must be [batch, tokens]"
        assert tokens.mask.dtype == torch.bool, "the mask must be boolean"
        assert tokens.mask.any(dim=1).all(), "every sample needs at least one real token"
    if tokens.grid is not None:
        assert torch.Size(tokens.grid).numel() == count, f"grid {tokens.grid} does not hold {count} tokens"
    return tokens


def _check_padding(
    encoder: nn.Module, processor: Processor, samples: list[dict[str, Tensor]], together: Tokens
) -> None:
    """Whatever shares a batch with a sample, its real tokens are the same."""
    for row, sample in enumerate(samples):
        with torch.no_grad():
            alone = encoder(processor.collate([sample]))
        own, batched = _real(alone, 0), _real(together, row)
        assert own.shape == batched.shape, "padding must not change the number of real tokens"
        message = "padding and other samples must not change a sample's tokens"
        torch.testing.assert_close(own, batched, rtol=_TOLERANCE, atol=_TOLERANCE, msg=message)


def _check_precision(encoder: nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(inputs).values.isfinite().all(), "tokens must be finite under bf16 autocast"


def _check_state(encoder: nn.Module, modality: Modality, inputs: dict[str, Tensor], tokens: Tokens) -> None:
    other = copy.deepcopy(modality.encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        values = other.eval()(inputs).values
    message = "the state_dict must hold all that the output depends on"
    torch.testing.assert_close(values, tokens.values, rtol=_TOLERANCE, atol=_TOLERANCE, msg=message)


def _check_training(modality: Modality, inputs: dict[str, Tensor]) -> None:
    """A few steps of a small CoCa: a gradient reaches every parameter of the encoder, and the loss falls."""
    sizes = dict(width=32, num_heads=2, mlp_width=64, unimodal_layers=1, multimodal_layers=1, embedding_width=16)
    config = ModelConfig(**sizes, pooler="none", num_queries=2, context_length=8)
    model = CoCa(config, {modality.name: copy.deepcopy(modality.encoder)}, 20, torch.Generator().manual_seed(0))
    rows = len(next(iter(inputs.values())))
    ids = torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        outputs = model(modality.name, inputs, ids, torch.full((rows,), 6))
        loss = outputs.caption_loss / (5 * rows)
        loss = loss + contrastive_loss(outputs.source, outputs.text, outputs.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            encoder = model.encoders[modality.name]
            named = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
            without = [name for name, p in named if p.grad is None or not p.grad.any()]
            assert not without, f"no gradient reaches {', '.join(without)}"
            assert all(p.grad.isfinite().all() for _, p in named), "gradients must be finite"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], "training must lower the loss on its own batch"


def _real(tokens: Tokens, row: int) -> Tensor:
    return tokens.values[row] if tokens.mask is None else tokens.values[row][tokens.mask[row]]


def _assert_equal(first: dict[str, Tensor], second: dict[str, Tensor], message: str) -> None:
    assert first.keys() == second.keys(), message
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=f"{message} ({name})")
