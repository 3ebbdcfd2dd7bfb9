"""Writes a finished model's folder; see `multicoca.runs.model_folder`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_model

from multicoca.config import Config, to_yaml
from multicoca.files import write_text, written_aside
from multicoca.model.bundle import Bundle
from multicoca.runs.model_folder import CARD, CONFIG, TOKENIZER, WEIGHTS, without_sources_of_weights


def save(folder: Path, bundle: Bundle, config: Config, card: str) -> None:
    """Writes a model folder; every file is written aside and renamed.

    Args:
        folder: where to.
        bundle: the model.
        config: what it was trained with.
        card: the text of its README.md.
    """
    own = replace(config, start_from=None, modalities=without_sources_of_weights(config.modalities))
    for name, text in ((CONFIG, to_yaml(own)), (TOKENIZER, bundle.tokenizer.to_json()), (CARD, card)):
        write_text(folder / name, text)
    with written_aside(folder / WEIGHTS) as aside:
        try:
            save_model(bundle.network, str(aside))
        except SafetensorError as error:
            raise OSError(f"the weights cannot be written to {folder}: {error}") from error
