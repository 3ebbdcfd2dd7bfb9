"""MultiCoCa: one contrastive captioner for interchangeable modalities.

    model = multicoca.load("runs/shapes/model")
    model.caption(["photo.jpg", "clip.mp4"])

The names are imported on first use, so that a command starts at once.

Where torch is not loaded yet, its threads are told to wait asleep (OMP_WAIT_POLICY, unless it is set). Their default is
to spin, and with a data worker or anything else on the same cores a spinning thread keeps the one it waits for from
running; a training step then takes up to fifty times as long.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multicoca.api import Description, MultiCoCa, load
    from multicoca.data.sample import Problem
    from multicoca.inputs import Transform
    from multicoca.model.bundle import Caption
    from multicoca.model.generate import DecodingConfig
    from multicoca.reading import UnreadableFileError

__all__ = [
    "Caption", "DecodingConfig", "Description", "MultiCoCa", "Problem", "Transform", "UnreadableFileError", "load",
]  # fmt: skip

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = {
    "Caption": "model.bundle", "DecodingConfig": "model.generate", "Description": "api", "MultiCoCa": "api",
    "Problem": "data.sample", "Transform": "inputs", "UnreadableFileError": "reading", "load": "api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the public names when they are asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'multicoca' has no attribute '{name}'")
    return getattr(importlib.import_module(f"multicoca.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
