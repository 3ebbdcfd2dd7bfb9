"""All initialisation of the core, as one table of (pattern of the parameter's name, initialiser).

The first pattern that matches decides; a parameter that none matches is an error. Encoders initialise
themselves. Residual branches end small, by 1/sqrt(2 x layers) (GPT-2, section 2.3), so that depth does not
change the scale of the residual stream; the caption head starts at logits of standard deviation 1/4, so that
the first captioning loss is ln(vocabulary) within 0.04.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

INITIAL_TEMPERATURE = 0.07  # CoCa, section 4.1; CLIP (arXiv 2103.00020), section 2.5
INITIAL_LOGIT_BIAS = -10.0  # SigLIP (arXiv 2303.15343), section 3.2
MAX_LOGIT_SCALE = 100.0  # CLIP, section 2.5

Initializer = Callable[[Tensor, int, torch.Generator | None], None]


def _normal(scale: float) -> Initializer:
    """A normal distribution with a fixed standard deviation."""
    return lambda parameter, layers, generator: parameter.normal_(0, scale, generator=generator)


def _fan_in(scale: float = 1.0, residual: bool = False) -> Initializer:
    """A normal distribution with standard deviation scale / sqrt(fan in), less by depth at a branch's end."""

    def initialize(parameter: Tensor, layers: int, generator: torch.Generator | None) -> None:
        depth = math.sqrt(2 * layers) if residual else 1.0
        parameter.normal_(0, scale / math.sqrt(parameter.shape[1]) / depth, generator=generator)

    return initialize


def _constant(value: float) -> Initializer:
    return lambda parameter, layers, generator: parameter.fill_(value)


TABLE: tuple[tuple[str, Initializer], ...] = (
    ("*log_scale", _constant(math.log(1 / INITIAL_TEMPERATURE))),
    ("*logit_bias", _constant(INITIAL_LOGIT_BIAS)),
    ("*norm*.weight", _constant(1.0)),
    ("*.bias", _constant(0.0)),
    ("text.token_embedding.weight", _normal(0.02)),
    ("text.position_embedding", _normal(0.01)),
    ("text.cls_embedding", _normal(0.02)),
    ("poolers.*queries", _normal(1.0)),  # normalised before use: only the direction counts
    ("text.*.attention.out.weight", _fan_in(residual=True)),
    ("text.*.cross_attention.out.weight", _fan_in(residual=True)),
    ("text.*mlp.down.weight", _fan_in(residual=True)),
    ("*caption_head*.weight", _fan_in(scale=0.25)),
    ("*.weight", _fan_in()),
)


@torch.no_grad()
def initialize(
    module: nn.Module, num_layers: int, skip: str = "encoders.", generator: torch.Generator | None = None
) -> None:
    """Sets every parameter of the core by the table.

    Args:
        module: the CoCa model.
        num_layers: residual layers of the decoder, both halves together.
        skip: prefix of the parameters that initialise themselves.
        generator: the source of randomness; None takes torch's global one.
    """
    for name, parameter in module.named_parameters():
        if not name.startswith(skip):
            initializer_of(name)(parameter, num_layers, generator)


def initializer_of(name: str) -> Initializer:
    """Returns the table's entry for a parameter.

    Raises:
        KeyError: the table has no pattern for it.
    """
    for pattern, initializer in TABLE:
        if fnmatchcase(name, pattern):
            return initializer
    raise KeyError(f"no rule of multicoca.nn.init.TABLE matches the parameter '{name}'; add one")
