"""Shape checks for the whole suite, and the small things that many tests need."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "2")

from jaxtyping import install_import_hook

install_import_hook(["multicoca", "multicoca_image", "multicoca_video", "multicoca_points"], "beartype.beartype")

import pytest
import torch
from torch import nn

from multicoca.distributed.launch import STOP_SIGNALS
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.tokens import Tokens

VOCAB = 97


class VectorEncoder(nn.Module):
    """An encoder without any modality: vectors in, tokens out."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList([nn.Linear(6, width)])

    def forward(self, inputs: dict[str, torch.Tensor]) -> Tokens:
        """Maps {"x": [batch, tokens, 6]} and an optional mask."""
        return Tokens(self.blocks[0](inputs["x"]), inputs.get("mask"))


def small_model(seed: int = 0, encoders: tuple[str, ...] = ("a", "b"), **changes) -> CoCa:
    """A model of two modalities that knows only vectors."""
    sizes = dict(width=32, num_heads=4, mlp_width=64, unimodal_layers=2, multimodal_layers=2, embedding_width=16)
    config = ModelConfig(**{**sizes, "num_queries": 4, "context_length": 12, **changes})
    torch.manual_seed(seed)
    modules = {name: VectorEncoder() for name in encoders}
    return CoCa(config, modules, VOCAB, torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> CoCa:
    """A small model in evaluation mode."""
    return small_model().eval()


@pytest.fixture
def pairs() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Inputs, ids and lengths of five pairs with texts of unequal length."""
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(5, 7, 6, generator=generator)}
    ids = torch.randint(3, VOCAB, (5, 9), generator=generator)
    return inputs, ids, torch.tensor([9, 4, 2, 7, 3])


@pytest.fixture
def open3d():
    """The module open3d; a test that needs it is skipped where a library that it links is missing."""
    from multicoca_points import load_open3d

    try:
        return load_open3d()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals that end a run have their usual effect, also where the tests run in the background or under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
