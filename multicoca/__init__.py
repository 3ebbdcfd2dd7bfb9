"""MultiCoCa: one contrastive captioner for interchangeable modalities.

    model = multicoca.load("runs/shapes/model")
    model.caption(["photo.jpg", "clip.mp4"])

The names are imported on first use, so that the command line can set up its process before torch comes.
"""

import importlib
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
