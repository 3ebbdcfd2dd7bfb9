"""From plain configuration to objects: `_target_` names what to build, everything else is its arguments.

Only what is meant to be built is: the sources named here, and an installed modality package's own classes and what
its `__all__` names. So the config.yaml of a model from elsewhere cannot call anything else. `_encoder_of_: NAME` stands
for the encoder of another modality, which makes sharing it a matter of configuration; null takes it back.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from multicoca.modality import Modality, installed_modalities

TARGET, ENCODER_OF = "_target_", "_encoder_of_"
SOURCES = (
    "multicoca.data.shapes.source.ShapesWorld",
    "multicoca.data.sources.Folder",
    "multicoca.data.together.Together",
    "multicoca.data.webdataset.WebDataset",
)


def build(spec: Any, encoders: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Builds what a specification describes, nested ones first.

    Args:
        spec: a mapping with `_target_`, or any plain value, which is returned as it is.
        encoders: what `_encoder_of_` may refer to.
        arguments: more arguments for the outermost target.

    Raises:
        ValueError: the target is not allowed or does not exist, or an argument is unknown or missing.
    """
    if isinstance(spec, (list, tuple)):
        return [build(value, encoders) for value in spec]
    if not isinstance(spec, Mapping):
        return spec
    if spec.get(ENCODER_OF) is not None:
        return (encoders or {})[spec[ENCODER_OF]]
    values = {key: build(value, encoders) for key, value in spec.items() if key not in (TARGET, ENCODER_OF)}
    if TARGET not in spec:
        return values
    target = find_target(spec[TARGET])
    try:
        inspect.signature(target).bind(**values, **arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(target).parameters)
        raise ValueError(f"{spec[TARGET]}: {error}; it takes {takes}") from error
    return target(**values, **arguments)


def find_target(path: str) -> Any:
    """Imports an allowed target.

    Raises:
        ValueError: it is not allowed, or there is no such thing.
    """
    module_name, _, name = path.rpartition(".")
    packages = sorted({point.value for point in installed_modalities().values()})
    package = next((own for own in packages if f"{module_name}.".startswith(f"{own}.")), None)
    if path not in SOURCES and package is None:
        raise ValueError(
            f"the target '{path}' is not allowed; allowed are {', '.join(SOURCES)} and what {', '.join(packages)} bring"
        )
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the target '{path}' does not exist ({error})") from error
    is_exported = module_name == package and name in getattr(module, "__all__", ())
    is_own_class = inspect.isclass(found) and f"{found.__module__}.".startswith(f"{package}.")
    if path in SOURCES or is_exported or is_own_class:
        return found
    raise ValueError(f"the target '{path}' is not allowed; of {package}, its classes and what its __all__ names are")


def build_modalities(specs: Mapping[str, Any], seed: int = 0) -> dict[str, Modality]:
    """Builds processors and encoders; encoders come in the order in which they refer to each other.

    Args:
        specs: `processor` and `encoder` of each modality.
        seed: of the encoders' initialisation; torch's global generator is left as it was.

    Raises:
        ValueError: there are none, a part is missing, or a reference leads nowhere or in a circle.
    """
    if not specs:
        raise ValueError("no modality is configured; choose some, for example modality=[image]")
    for name, spec in specs.items():
        missing = [part for part in ("processor", "encoder") if part not in spec]
        if missing:
            raise ValueError(f"modalities.{name} has no {' and no '.join(missing)}; it needs both")
    encoders: dict[str, Any] = {}
    waiting = list(specs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while waiting:
            ready = [name for name in waiting if _references(specs[name]["encoder"]) <= set(encoders)]
            if not ready:
                wanted = {name: sorted(_references(specs[name]["encoder"])) for name in waiting}
                raise ValueError(f"encoders refer to others that are not configured, or in a circle: {wanted}")
            for name in ready:
                encoders[name] = build(specs[name]["encoder"], encoders)
                waiting.remove(name)
    return {name: Modality(name, build(spec["processor"]), encoders[name]) for name, spec in specs.items()}


def build_processors(specs: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the processors alone."""
    return {name: build(spec["processor"]) for name, spec in specs.items()}


def _references(spec: Any) -> set[str]:
    if isinstance(spec, Mapping):
        own = {spec[ENCODER_OF]} if spec.get(ENCODER_OF) is not None else set()
        return own.union(*(_references(value) for value in spec.values()))
    if isinstance(spec, (list, tuple)):
        return set().union(*(_references(value) for value in spec))
    return set()
