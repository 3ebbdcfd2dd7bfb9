"""Fine-tuning: a new model begins with the weights of a model folder, and may have more, less data or other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from multicoca.modality import Resizable
from multicoca.model.coca import CoCa
from multicoca.model.spec import ModelSpec
from multicoca.model.weights import read_weights
from multicoca.runs.model_folder import WEIGHTS


@dataclass(frozen=True)
class Start:
    """What a model took over.

    Attributes:
        new: names of the parameters that the folder has nothing for.
        resized: names of the tensors that were taken to another size.
    """

    new: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()


def start_from(network: CoCa, folder: Path, before: ModelSpec, now: ModelSpec) -> Start:
    """Copies the weights of a model folder into a network that may have more, such as another modality.

    Encoders that can (`Resizable`) take positions to their own size.

    Args:
        network: is filled.
        folder: of the model to start from.
        before: that model's make.
        now: the network's.

    Raises:
        ValueError: a tensor of the folder has no place in the network, or another shape; the message names the settings
            that differ.
    """
    weights, own = read_weights(folder / WEIGHTS), network.state_dict()
    resized = _resized(network, weights)
    wrong = [name for name, value in resized.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        differences = "; ".join(spec_differences(before, now)) or "none; its package builds another model now"
        raise ValueError(
            f"{len(wrong)} tensors of {folder / WEIGHTS} have no place in the model, the first is {wrong[0]} "
            f"{list(resized[wrong[0]].shape)}. Settings that differ from that model's: {differences}. Leave them out, "
            "or give what is new a name of its own"
        )
    network.load_state_dict(resized, strict=False)
    named = network.named_parameters(remove_duplicate=False)  # shared ones come under each of their names
    filled = {id(parameter) for name, parameter in named if name in resized}
    new = tuple(name for name, parameter in network.named_parameters() if id(parameter) not in filled)
    return Start(new, tuple(name for name, value in resized.items() if value.shape != weights[name].shape))


def _resized(network: CoCa, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights with those of encoders in the encoders' own sizes."""
    resized = dict(weights)
    for modality, encoder in network.encoders.items():
        prefix = f"encoders.{modality}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if own and isinstance(encoder, Resizable):
            resized.update({prefix + name: value for name, value in encoder.resized(own).items()})
    return resized


def spec_differences(before: ModelSpec, now: ModelSpec) -> list[str]:
    """Returns a line for each setting of the old model's parts that is another one now."""
    old = dict(leaves({"model": vars(before.model), "modalities": before.modalities}))
    new = dict(leaves({"model": vars(now.model), "modalities": now.modalities}))
    added = tuple(f"modalities.{name}." for name in now.modalities if name not in before.modalities)
    keys = [key for key in sorted(old.keys() | new.keys()) if not key.startswith(added)]
    return [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
        for key in keys
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of all that is not a mapping."""
    if not isinstance(node, Mapping):
        yield prefix, list(node) if isinstance(node, tuple) else node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
