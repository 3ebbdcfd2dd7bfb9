"""`check_modality`: the contract of a modality as a function that anyone can run."""

from multicoca.testing.contract import check_modality

__all__ = ["check_modality"]
