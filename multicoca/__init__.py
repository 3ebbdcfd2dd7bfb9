"""MultiCoCa: one contrastive captioner for interchangeable modalities.

`multicoca.load(folder)` is imported on first use, so that the command line can set up its process before torch
comes.
"""

from typing import Any

__all__ = ["MultiCoCa", "load"]


def __getattr__(name: str) -> Any:
    """Imports the public names when they are asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'multicoca' has no attribute '{name}'")
    from multicoca import api

    return vars(api)[name]
