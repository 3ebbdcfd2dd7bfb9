"""Hydra at the edge: composes a configuration from the packaged YAML, those of modality packages, and overrides."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multicoca.config import Config, from_hydra, register
from multicoca.modality import installed_modalities

CONFIG_MODULE = "multicoca_configs"


def compose_config(name: str, overrides: list[str]) -> Config:
    """Composes `name`.yaml with overrides such as `model.width=256` or `experiment=joint`.

    Raises:
        ValueError: an override names what does not exist, or has the wrong type.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            composed = compose(name, overrides=[*search_path(), *map(_quoted, overrides)])
            OmegaConf.resolve(composed)
            return from_hydra(composed)
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error) if error.__cause__ is None else f"{error} ({error.__cause__})"
        raise ValueError(f"the configuration cannot be composed: {reason.strip()}") from error


def compose_launcher(name: str, overrides: list[str]) -> dict[str, Any]:
    """Composes the configuration of the launcher that the overrides choose, resolved.

    Raises:
        ValueError: an override names what does not exist, or has the wrong type.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            composed = compose(name, overrides=[*search_path(), *overrides], return_hydra_config=True)
            return OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"the launcher's configuration cannot be composed: {error}") from error


def _quoted(override: str) -> str:
    """Puts quotes around a value with a brace pattern such as shards/{000..009}.tar, which Hydra cannot read."""
    key, is_set, value = override.partition("=")
    is_pattern = "{" in value and "${" not in value and value[0] not in "{['\""
    return f"{key}='{value}'" if is_set and is_pattern else override


def search_path() -> list[str]:
    """Returns the override that adds the `configs` folders of modality packages from elsewhere."""
    folders = []
    for point in installed_modalities().values():
        try:
            folder = files(point.value) / "configs"
        except ModuleNotFoundError:
            continue  # `doctor` reports packages that cannot be imported
        if folder.is_dir():
            folders.append(f"file://{Path(str(folder))}")
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def print_help(name: str, text: str) -> int:
    """Prints how to use a command that takes overrides, with its groups and defaults."""
    print(text)
    for group in sorted(path for path in files(CONFIG_MODULE).iterdir() if path.is_dir() and path.name[0] != "_"):
        choices = sorted(Path(str(choice)).stem for choice in group.iterdir() if choice.name.endswith(".yaml"))
        print(f"  {group.name}: {', '.join(choices)}")
    print("\nThe composed defaults:\n")
    print(OmegaConf.to_yaml(OmegaConf.structured(compose_config(name, []))), file=sys.stdout)
    return 0
