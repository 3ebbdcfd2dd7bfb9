"""The video modality: reads video files, samples frames by time, encodes them with an injected frame encoder.

Its names are imported when they are asked for (PEP 562), so that a process that only decodes does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multicoca_video.encoder import VideoEncoder
    from multicoca_video.processor import VideoProcessor
    from multicoca_video.reader import Video, open_video
    from multicoca_video.sampling import ClipSampler, TimeSampler, UniformSampler, frames_at

__all__ = [
    "ClipSampler", "TimeSampler", "UniformSampler", "Video", "VideoEncoder", "VideoProcessor",
    "frames_at", "open_video",
]  # fmt: skip
TARGETS = {
    "processor": ("VideoProcessor",),
    "encoder": ("VideoEncoder",),
    "part": ("ClipSampler", "TimeSampler", "UniformSampler"),
}

_MODULES = {
    "ClipSampler": "sampling", "TimeSampler": "sampling", "UniformSampler": "sampling", "Video": "reader",
    "VideoEncoder": "encoder", "VideoProcessor": "processor", "frames_at": "sampling", "open_video": "reader",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'multicoca_video' has no attribute '{name}'")
    return getattr(importlib.import_module(f"multicoca_video.{_MODULES[name]}"), name)
