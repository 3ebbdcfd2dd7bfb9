"""Clips in memory: arrays and tensors of frames, which are read as `multicoca_video.reader.Video` reads files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from multicoca.modality import as_array
from multicoca.reading import UnreadableFileError
from multicoca_video.reader import Video, checked_indices

T = TypeVar("T")
OBJECTS = (
    "an array or tensor [frames, height, width, 3], uint8 or floats in [0, 1], or a mapping "
    "{'frames': such an array, 'fps': frames per second}"
)
_KEYS = ({"frames"}, {"frames", "fps"})
_FPS = 25.0  # of frames without a rate; it matters only to samplers that count seconds


class FrameArray:
    """Frames in memory at a constant rate.

    Args:
        frames: uint8, or floats in [0, 1].
        fps: frames per second.

    Attributes:
        num_frames: how many there are.
        duration_s: the end of the last frame.
        frame_times_s: float64 [num_frames], the first is 0.
    """

    def __init__(self, frames: Shaped[np.ndarray, "frames height width 3"], fps: float) -> None:
        self._frames = frames
        self.num_frames = len(frames)
        self.duration_s = len(frames) / fps
        self.frame_times_s = np.arange(len(frames)) / fps

    def prepared(self, indices: Sequence[int] | np.ndarray, prepare: Callable[[np.ndarray], T]) -> list[T]:
        """See `Video.prepared`."""
        wanted, places = np.unique(checked_indices(indices, self.num_frames), return_inverse=True)
        pictures = [prepare(self._picture(number)) for number in wanted.tolist()]
        return [pictures[place] for place in places.tolist()]

    def _picture(self, number: int) -> np.ndarray:
        frame = self._frames[number]
        return frame if frame.dtype == np.uint8 else (frame.astype(np.float32) * 255).round().astype(np.uint8)


def is_clip(value: Any) -> bool:
    """Whether a value is an opened clip, or has the shape or the keys of one."""
    if isinstance(value, Mapping):
        return "frames" in value
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim == 4 and value.shape[3] == 3
    return isinstance(value, (Video, FrameArray))


def clip_of(value: Any, max_pixels: int) -> Video | FrameArray:
    """Turns a clip in memory into what `open_video` returns for a file of it.

    Args:
        value: see `OBJECTS`; [frames, 3, height, width] is taken, too, though `is_clip` leaves it out: such an array is
            more often a batch of pictures.
        max_pixels: of a frame at the most.

    Raises:
        UnreadableFileError: it is no clip, or its shape, type or range is wrong.
    """
    if isinstance(value, (Video, FrameArray)):
        return value
    frames, fps = value, _FPS
    if isinstance(value, Mapping):
        if set(value) not in _KEYS:
            raise UnreadableFileError(f"got a mapping with the keys {', '.join(map(repr, value))}; expected {OBJECTS}")
        frames, fps = value["frames"], value.get("fps", _FPS)
        if not isinstance(fps, (int, float)) or not 0 < fps < np.inf:
            raise UnreadableFileError(f"fps is {fps!r}; expected a number of frames per second above 0")
    array = as_array(frames)
    if array is None:
        raise UnreadableFileError(f"got {type(frames).__name__}; expected {OBJECTS}")
    got = f"got {array.dtype} of shape {list(array.shape)}"
    if array.ndim == 4 and array.shape[1] == 3 != array.shape[3]:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or array.size == 0:
        raise UnreadableFileError(f"{got}; expected {OBJECTS}")
    if array.shape[1] * array.shape[2] > max_pixels:
        raise UnreadableFileError(f"{got}; its frames may have at most {max_pixels} pixels, the processor's max_pixels")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # nor where one is NaN
            raise UnreadableFileError(f"{got} with values from {low:.4g} to {high:.4g}; expected floats in [0, 1]")
    elif array.dtype != np.uint8:
        raise UnreadableFileError(f"{got}; expected uint8 or floats in [0, 1]")
    return FrameArray(array, float(fps))
