"""What a model is made of: all that must be known to build it, and nothing of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from multicoca.model.config import ModelConfig
from multicoca.text.tokenizer import TextConfig


@dataclass(frozen=True)
class ModelSpec:
    """What a model is made of.

    Attributes:
        model: the core's sizes.
        modalities: `processor` and `encoder` of each modality, by name.
        text: the tokenizer's settings.
        seed: of the initialisation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    modalities: dict[str, Any] = field(default_factory=dict)
    text: TextConfig = field(default_factory=TextConfig)
    seed: int = 0
