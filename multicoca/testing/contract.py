"""The contract of a modality as a function that anyone can run: `check_modality(modality, files)`.

Every check asserts one promise of `multicoca.modality` and says which one was broken. The checks know no modality:
they change what goes in and watch what comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from multicoca.modality import Encoder, Modality, Processor
from multicoca.testing.encoders import check_blocks, check_precision, check_statistics, check_tokens
from multicoca.testing.grid import check_grid
from multicoca.testing.padding import check_padding
from multicoca.testing.processors import check_finishing, check_processor
from multicoca.testing.state import check_state
from multicoca.testing.training import check_training


def check_modality(modality: Modality, files: Sequence[Path], rebuild: Callable[[], nn.Module] | None = None) -> None:
    """Checks a modality against the contract.

    Args:
        modality: freshly built; it is left as it was, copies of its encoder are run and trained.
        files: at least two readable files, best of different sizes.
        rebuild: builds the encoder anew with other random weights, for example
            `lambda: build_modalities(specs, seed=1)["signal"].encoder`. With it, the state_dict of the encoder is
            loaded into a new one, which must then give the same tokens. It is required where the tokens depend on
            tensors outside the state_dict, such as buffers with persistent=False.

    Raises:
        AssertionError: a promise is broken, or a check would be empty; the message says which.
    """
    assert len(files) >= 2, f"check_modality got {len(files)} files; give at least two, best of different sizes"
    processor, encoder = modality.processor, modality.encoder
    assert isinstance(processor, Processor), f"{type(processor).__name__} lacks a part of multicoca.modality.Processor"
    assert isinstance(encoder, Encoder), f"{type(encoder).__name__} lacks a part of multicoca.modality.Encoder"
    assert isinstance(encoder, nn.Module), "the encoder must be an nn.Module"
    check_blocks(encoder)
    samples = check_processor(processor, files)
    collate = check_finishing(processor, samples)
    inputs = collate(samples)
    encoder = copy.deepcopy(encoder).eval()
    check_statistics(encoder, collate, samples)
    tokens = check_tokens(encoder, inputs, len(samples))
    check_padding(encoder, collate, samples)
    check_grid(encoder, collate, samples[0])
    check_precision(encoder, inputs)
    check_state(modality.encoder, inputs, tokens, rebuild)
    check_training(modality, inputs)
