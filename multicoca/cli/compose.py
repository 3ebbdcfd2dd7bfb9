"""Hydra at the edge: composes a configuration from the packaged YAML, those of modality packages, and overrides."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from multicoca.config import Config, from_hydra, register, sets_sizes, to_yaml
from multicoca.data.order import keyed_number
from multicoca.modality import configuration_folders, installed_modalities
from multicoca.model.spec import ModelSpec
from multicoca.runs.model_folder import local_folder, read_spec

CONFIG_MODULE = "multicoca_configs"
_LONGEST_NAME = 150  # of a folder; file systems allow 255 bytes


def compose_config(name: str, overrides: list[str]) -> Config:
    """Composes `name`.yaml with overrides such as `model.width=256` or `experiment=joint`.

    Raises:
        ValueError: an override names what does not exist, or has the wrong type.
    """
    return _to_config(_composed(name, overrides))


def compose_training(overrides: list[str]) -> Config:
    """Composes what `multicoca train` runs.

    Raises:
        ValueError: an override names what does not exist or has the wrong type, the sizes of a new model are not
            chosen, or the model to start from cannot be read.
    """
    composed = _composed_training(overrides)
    if composed.start_from is not None:
        return _with_known_names(_to_config(composed, read_spec(local_folder(composed.start_from))))
    if not sets_sizes(composed):
        raise ValueError(f"no size is chosen for the model; add model={' or model='.join(_choices('model'))}")
    if not composed.modalities:
        raise ValueError(f"no modality is chosen; add some of modality=[{','.join(_choices('modality'))}]")
    return _with_known_names(_to_config(composed))


def _with_known_names(config: Config) -> Config:
    """Returns the configuration; raises ValueError where a setting by modality is for one that is not there."""
    by_name = {"optim.lr_scale": config.optim.lr_scale, "data.weights": config.data.weights}
    by_name |= {"data.batch_sizes": config.data.batch_sizes, "evaluation.templates": config.evaluation.templates}
    for key, named in by_name.items():
        unknown = [] if isinstance(named, str) else [name for name in named if name not in config.modalities]
        if unknown:
            raise ValueError(f"{key} names {', '.join(unknown)}; the modalities are {', '.join(config.modalities)}")
    return config


def _composed_training(overrides: list[str]) -> DictConfig:
    """Composes one of three recipes: that of the shapes world, unless a model to start from or other data is chosen."""
    composed = _composed("train_shapes", overrides)
    if composed.start_from is not None:
        return _composed("train_from", overrides)
    return composed if composed.hydra.runtime.choices.data == "shapes" else _composed("train", overrides)


def split_sweep(overrides: list[str]) -> list[tuple[list[str], str]]:
    """Returns (overrides, what distinguishes them) of each run of a sweep, such as `optim.lr=1e-3,3e-4 seed=0,1`.

    Raises:
        ValueError: an override cannot be parsed, or none has several values.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(map(_quoted, overrides)))
        keys = Counter(each.get_key_element() for each in parsed)
        for each in parsed:
            if each.is_sweep_override() and (keys[each.get_key_element()] > 1 or isinstance(each.value(), Glob)):
                raise ValueError(f"{each.input_line} cannot be swept over; give the values once, with commas")
        choices = [
            [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
            if each.is_sweep_override()
            else [text]
            for each, text in zip(parsed, overrides, strict=True)
        ]
    except HydraException as error:
        raise ValueError(_what_is_wrong(error)) from error
    if all(len(values) == 1 for values in choices):
        raise ValueError("there is nothing to sweep over; give some setting several values, as in seed=0,1")
    runs = []
    for chosen in product(*choices):
        differs = [own for own, values in zip(chosen, choices, strict=True) if len(values) > 1]
        name = "+".join(re.sub(r"[^\w.-]+", "_", own.lstrip("+")) for own in differs)
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}_{keyed_number(*differs):016x}"
        runs.append((list(chosen), name))
    names = Counter(name for _, name in runs)
    return [(run, name if names[name] == 1 else f"{name}_{keyed_number(*run):016x}") for run, name in runs]


def compose_reading(overrides: list[str]) -> Config:
    """Composes a source and the modalities that read it, all that are installed by default.

    Raises:
        ValueError: an override names what does not exist, or has the wrong type.
    """
    return compose_config("train_shapes", [f"modality=[{','.join(installed_modalities())}]", *overrides])


def _composed(name: str, overrides: list[str]) -> DictConfig:
    """Composes a configuration with Hydra's own; see `compose_config`."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            all_overrides = [*search_path(), *map(_quoted, overrides)]
            return compose(name, overrides=all_overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_what_is_wrong(error)) from error


def _to_config(composed: DictConfig, before: ModelSpec | None = None) -> Config:
    with open_dict(composed):
        del composed["hydra"]
    try:
        OmegaConf.resolve(composed)
        return from_hydra(composed, before)
    except OmegaConfBaseException as error:
        raise ValueError(_what_is_wrong(error)) from error


def _what_is_wrong(error: Exception) -> str:
    """Returns an error of Hydra's in one line, with the valid keys where a key is unknown."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    unknown = re.search(r"Could not override '([\w.@/-]+)'", text)
    if unknown:
        place, _, key = unknown[1].rpartition(".")
        schema = OmegaConf.select(OmegaConf.structured(Config), place) if place else OmegaConf.structured(Config)
        known = f"{place} has" if place else "there are"
        valid = f"; {known}: {', '.join(schema)}" if OmegaConf.is_dict(schema) else ""
        return f"the configuration cannot be composed: there is no key '{unknown[1]}'{valid}"
    text = re.split(r" Config search path:| full_key: \S+ (?:reference_type|object_type)=", text)[0]
    return f"the configuration cannot be composed: {text}"


def compose_launcher(overrides: list[str]) -> dict[str, Any]:
    """Composes the configuration of the launcher that the overrides choose for training, resolved.

    Raises:
        ValueError: an override names what does not exist, or has the wrong type.
    """
    try:
        return OmegaConf.to_container(_composed_training(overrides).hydra.launcher, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(_what_is_wrong(error)) from error


def _quoted(override: str) -> str:
    """Puts quotes around a value with a brace pattern such as shards/{000..009}.tar, which Hydra cannot read."""
    key, is_set, value = override.partition("=")
    is_pattern = "{" in value and "${" not in value and value[0] not in "{['\""
    return f"{key}='{value}'" if is_set and is_pattern else override


def search_path() -> list[str]:
    """Returns the override that adds the `configs` folders of modality packages from elsewhere."""
    folders = [f"file://{Path(str(folder))}" for folder in configuration_folders()]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def print_help(name: str, text: str) -> int:
    """Prints how to use a command that takes overrides, with its groups and defaults."""
    print(text)
    for group in _groups():
        print(f"  {group}: {', '.join(_choices(group))}")
    print("\nThe composed defaults:\n")
    print(to_yaml(compose_config(name, [])))
    return 0


def _folders() -> list[Any]:
    """Returns the folders with configurations: the packaged ones and those of modality packages from elsewhere."""
    return [files(CONFIG_MODULE), *configuration_folders()]


def _groups() -> list[str]:
    found = {path.name for folder in _folders() for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in found - {"templates"} if name[0] not in "_." and _choices(name))


def _choices(group: str) -> list[str]:
    """Returns what can be chosen of a group."""
    folders = [folder / group for folder in _folders()]
    found = (path.name for folder in folders if folder.is_dir() for path in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))
