"""The paper's sizes: counted without memory, and the first losses of the smallest in full."""

import math

import pytest
import torch

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_training
from multicoca.model.coca import CoCa
from multicoca.model.losses import contrastive_loss

VOCAB_SIZE = 64_000


def build(name: str) -> CoCa:
    config = compose_training([f"experiment=coca_{name}", "data.root=."])
    assert config.text.vocab_size == VOCAB_SIZE
    encoders = {key: modality.encoder for key, modality in build_modalities(config.modalities).items()}
    return CoCa(config.model, encoders, VOCAB_SIZE, torch.Generator().manual_seed(0))


def count(*modules: torch.nn.Module) -> float:
    """Millions of parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


# CoCa, table 1. It prints 1.1B for the decoder of 2b, where its own layers, widths and vocabulary give 1.18B (and
# those of base and large exactly what it prints): the figure is cut there, not rounded.
@pytest.mark.parametrize(("name", "encoder", "decoder"), [("base", 86, 297), ("large", 303, 484), ("2b", 1000, 1180)])
def test_encoder_and_decoder_have_the_papers_sizes(name, encoder, decoder):
    with torch.device("meta"):
        model = build(name)
    assert count(model.encoders) == pytest.approx(encoder, rel=0.02)
    assert count(model.text, model.heads["image"].caption_head) == pytest.approx(decoder, rel=0.02)


@torch.no_grad()
def test_base_starts_at_the_losses_of_a_guess():
    model = build("base")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(16, 3, 288, 288, generator=generator)
    ids = torch.randint(0, VOCAB_SIZE, (16, 12), generator=generator)
    lengths = torch.randint(4, 13, (16,), generator=generator)
    outputs = model("image", {"pixels": pixels}, ids, lengths)
    captioning = outputs.caption_loss / (lengths - 1).sum()
    contrastive = contrastive_loss(outputs.source, outputs.text, outputs.logit_scale)
    assert float(captioning) == pytest.approx(math.log(VOCAB_SIZE), rel=0.02)
    assert float(contrastive) == pytest.approx(2 * math.log(16), rel=0.05)
