"""A finished model's folder: `model.safetensors`, `config.yaml`, `tokenizer.json` and `README.md`.

The folder may come from anybody. Of its configuration only what the model is made of is read: plain YAML without
interpolation, checked before anything is built, and targets that a package declares (`multicoca.build`). Nothing in
it is executed, unpickled or fetched. How the model was trained is in config.yaml too, as a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from multicoca.build import build_modalities
from multicoca.model.bundle import Bundle
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.model.spec import ModelSpec
from multicoca.runs.plain_yaml import read_plain_yaml
from multicoca.text.tokenizer import TextConfig, TextTokenizer

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.yaml", "tokenizer.json", "README.md"
# arguments of encoders that name weights to begin with; a model folder has its own, and loading must not fetch others
_SOURCES_OF_WEIGHTS = ("pretrained", "checkpoint")


def read_spec(folder: Path) -> ModelSpec:
    """Reads the configuration of a model folder.

    Raises:
        ValueError: it is not a model folder, or its configuration is not one that a model can have.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} is not a model folder: it has no {CONFIG}")
    content = read_plain_yaml(file)
    known = {key: content[key] for key in (each.name for each in fields(ModelSpec)) if key in content}
    missing = [key for key in ("model", "modalities") if key not in known]
    if missing:
        raise ValueError(f"{file} is not the configuration of a model: it has no {' and no '.join(missing)}")
    modalities = known.pop("modalities")
    if not isinstance(modalities, Mapping):
        raise ValueError(f"{file}: modalities is {modalities!r:.40}; expected a mapping by name")
    schema = OmegaConf.structured(_Typed)
    for part in (schema.model, schema.text):  # OmegaConf protects frozen dataclasses, even from what fills them
        OmegaConf.set_readonly(part, None)
    try:
        spec = OmegaConf.to_object(OmegaConf.merge(schema, known))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not the configuration of a model of this version: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return ModelSpec(spec.model, dict(modalities), spec.text, spec.seed)


@dataclass
class _Typed:
    """The part of `ModelSpec` whose types OmegaConf checks."""

    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    seed: int = 0


def read_tokenizer(folder: Path, spec: ModelSpec) -> TextTokenizer:
    """Reads the tokenizer of a model folder."""
    return TextTokenizer.load(folder / TOKENIZER, spec.model.context_length, spec.text.clean)


def build_bundle(spec: ModelSpec, tokenizer: TextTokenizer) -> Bundle:
    """Builds an untrained model; initialisation follows from its seed."""
    modalities = build_modalities(spec.modalities, spec.seed)
    encoders = {name: modality.encoder for name, modality in modalities.items()}
    generator = torch.Generator().manual_seed(spec.seed)
    network = CoCa(spec.model, encoders, tokenizer.vocab_size, generator)
    return Bundle(network, tokenizer, {name: modality.processor for name, modality in modalities.items()})


def load_bundle(folder: Path) -> tuple[Bundle, ModelSpec]:
    """Builds the model of a folder and fills it with its weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: the folder's files cannot be read or do not fit together.
    """
    spec = read_spec(folder)
    spec = ModelSpec(spec.model, without_sources_of_weights(spec.modalities), spec.text, spec.seed)
    tokenizer = read_tokenizer(folder, spec)
    _check_size(spec, tokenizer, folder / WEIGHTS)
    bundle = build_bundle(spec, tokenizer)
    try:
        load_model(bundle.network, folder / WEIGHTS)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"the weights {folder / WEIGHTS} do not fit the model of {CONFIG}: {error}") from error
    bundle.network.eval()
    return bundle, spec


def _check_size(spec: ModelSpec, tokenizer: TextTokenizer, weights: Path) -> None:
    """Compares sizes before memory is taken: a model is first built without any.

    Raises:
        ValueError: there are no weights, or the model would be larger than they are.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            held = sum(_count(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the weights {weights} cannot be read: {error}") from error
    with torch.device("meta"):
        network = build_bundle(spec, tokenizer).network
    wanted = sum(value.numel() for value in {id(v): v for v in network.state_dict(keep_vars=True).values()}.values())
    if wanted > held:
        raise ValueError(f"the model of {CONFIG} has {wanted:,} values and {weights} only {held:,}; they do not fit")


def _count(shape: list[int]) -> int:
    return torch.Size(shape).numel()


def without_sources_of_weights(spec: Any) -> Any:
    """Takes out which weights encoders began with."""
    if isinstance(spec, Mapping):
        return {k: without_sources_of_weights(v) for k, v in spec.items() if k not in _SOURCES_OF_WEIGHTS}
    return [without_sources_of_weights(value) for value in spec] if isinstance(spec, (list, tuple)) else spec


def local_folder(folder: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Returns a local folder as it is, or downloads one of the hub.

    Args:
        folder: a local folder, or owner/name of the Hugging Face hub.
        revision: a branch, tag or commit of the hub's.
        token: for a private model of the hub's; None takes that of `hf auth login`.

    Raises:
        ValueError: there is neither.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if str(folder).count("/") != 1 or str(folder).startswith((".", "/", "~")):
        raise ValueError(f"there is no model folder {folder}; expected a folder with {CONFIG} and {WEIGHTS}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [WEIGHTS, CONFIG, TOKENIZER, CARD]
    try:
        return Path(snapshot_download(str(folder), revision=revision, token=token, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"there is no folder {folder}, and the hub did not give a model of that name: {error}"
        ) from error
