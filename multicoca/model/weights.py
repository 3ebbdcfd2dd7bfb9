"""Files of weights: safetensors, or torch files that hold tensors alone. Nothing else is ever unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_weights(path: Path) -> dict[str, Any]:
    """Reads what a file of weights holds, on the CPU.

    Raises:
        ValueError: there is no such file, it is cut short, or it holds more than tensors and plain containers.
    """
    if not path.is_file():
        raise ValueError(
            f"the file of weights {path} does not exist; expected .safetensors, or a torch file of tensors"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read as weights: {error}. It is cut short, or holds more than tensors; expected "
            ".safetensors, or a torch file of tensors alone"
        ) from error
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds a {type(weights).__name__}, expected weights by name")
    return weights
