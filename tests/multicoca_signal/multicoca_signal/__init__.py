"""One-dimensional signals as a modality: the worked example of a package from outside."""

from multicoca_signal.encoder import SignalEncoder
from multicoca_signal.processor import SignalProcessor

__all__ = ["SignalEncoder", "SignalProcessor"]
TARGETS = {"processor": ("SignalProcessor",), "encoder": ("SignalEncoder",)}
