"""From plain configuration to objects: `_target_` names what to build, everything else is its arguments.

Only what a package declares can be built, each in its role: `TARGETS` here for the core, and the same name in the
`__init__.py` of an installed modality package. So the config.yaml of a model from elsewhere cannot call anything else.
`_encoder_of_: NAME` stands for the encoder of another modality, which makes sharing it a matter of configuration;
null takes it back.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multicoca.modality import Modality, installed_modalities

TARGET, ENCODER_OF = "_target_", "_encoder_of_"
TARGETS: Mapping[str, tuple[str, ...]] = {
    "source": (
        "multicoca.data.shapes.source.ShapesWorld",
        "multicoca.data.sources.Folder",
        "multicoca.data.together.Together",
        "multicoca.data.webdataset.WebDataset",
    )
}
# roles of the targets inside of one: a part is whatever a package gives its encoders, processors or sources to hold
_INSIDE = {
    "source": ("source", "part"),
    "processor": ("processor", "part"),
    "encoder": ("encoder", "part"),
    "part": ("part",),
}

# what a constructor may raise for an argument of the wrong kind or size, beside a ValueError that says it better
_REFUSALS = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError, MemoryError)


def build(spec: Any, role: str, encoders: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Builds what a specification describes, nested ones first.

    Args:
        spec: a mapping with `_target_`, or any plain value, which is returned as it is.
        role: what the outermost target must be declared as: "source", "processor", "encoder" or "part".
        encoders: what `_encoder_of_` may refer to.
        arguments: more arguments for the outermost target.

    Raises:
        ValueError: the target is not allowed or does not exist, or an argument is unknown, missing or refused.
    """
    return _build(spec, (role,), encoders or {}, arguments)


def _build(spec: Any, roles: tuple[str, ...], encoders: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    if isinstance(spec, (list, tuple)):
        return [_build(value, roles, encoders, {}) for value in spec]
    if not isinstance(spec, Mapping):
        return spec
    if spec.get(ENCODER_OF) is not None:
        return encoders[spec[ENCODER_OF]]
    if TARGET not in spec:
        return {key: _build(value, roles, encoders, {}) for key, value in spec.items() if key != ENCODER_OF}
    role, target = find_target(spec[TARGET], roles)
    inside = {key: value for key, value in spec.items() if key not in (TARGET, ENCODER_OF)}
    values = {key: _build(value, _INSIDE[role], encoders, {}) for key, value in inside.items()} | dict(arguments)
    try:
        inspect.signature(target).bind(**values)
    except TypeError as error:
        takes = ", ".join(inspect.signature(target).parameters)
        raise ValueError(f"{spec[TARGET]}: {error}; it takes {takes}") from error
    try:
        return target(**values)
    except _REFUSALS as error:
        raise ValueError(f"{spec[TARGET]} cannot be built from {_shown(values)}: {error!r}") from error


def find_target(path: Any, roles: Sequence[str]) -> tuple[str, Any]:
    """Finds a target that is declared in one of the roles.

    Returns:
        (its role, what it is).

    Raises:
        ValueError: it is not declared, is declared in another role, or its package cannot be imported.
    """
    declared = _declared(path)
    if declared is None:
        packages = sorted({point.value for point in installed_modalities().values()})
        core = [target for role in roles for target in TARGETS.get(role, ())]
        allowed = ", ".join([*core, f"what {', '.join(packages)} declare"])
        raise ValueError(f"the target {path!r:.100} is not allowed; allowed as {' or '.join(roles)}: {allowed}")
    role, target = declared
    if role not in roles:
        raise ValueError(f"the target '{path}' is declared as {role}; expected {' or '.join(roles)}")
    return role, target


def _declared(path: Any) -> tuple[str, Any] | None:
    """Returns (role, what it is) of a declared target, and None for anything else."""
    for role, paths in TARGETS.items():
        if path in paths:
            module, _, name = path.rpartition(".")
            return role, getattr(importlib.import_module(module), name)
    package, _, _ = str(path).partition(".")
    if package not in {point.value for point in installed_modalities().values()}:
        return None
    try:
        module = importlib.import_module(package)
        targets = module.TARGETS
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the target '{path}' cannot be had: {error}; see multicoca.modality for TARGETS") from error
    name = path.rpartition(".")[2]
    for role, names in targets.items():
        if name in names:
            found = getattr(module, name)
            # the module that defines it may be said, too, as in configurations of earlier versions
            return (role, found) if path in (f"{package}.{name}", f"{found.__module__}.{name}") else None
    return None


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in values.items())


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
        if not isinstance(spec, Mapping):
            raise ValueError(f"modalities.{name} is {spec!r:.60}; expected a processor and an encoder")
        missing = [part for part in ("processor", "encoder") if not isinstance(spec.get(part), Mapping)]
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
                encoders[name] = build(specs[name]["encoder"], "encoder", encoders)
                waiting.remove(name)
    processors = build_processors(specs)
    return {name: Modality(name, processors[name], encoders[name]) for name in specs}


def build_processors(specs: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the processors alone."""
    return {name: build(spec["processor"], "processor") for name, spec in specs.items()}


def _references(spec: Any) -> set[str]:
    if isinstance(spec, Mapping):
        own = {str(spec[ENCODER_OF])} if spec.get(ENCODER_OF) is not None else set()
        return own.union(*(_references(value) for value in spec.values()))
    if isinstance(spec, (list, tuple)):
        return set().union(*(_references(value) for value in spec))
    return set()
