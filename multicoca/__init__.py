"""MultiCoCa: one contrastive captioner for interchangeable modalities."""

from multicoca.api import MultiCoCa, load

__all__ = ["MultiCoCa", "load"]
