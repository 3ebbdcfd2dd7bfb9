"""Which moments of a video the model sees.

The decision: samplers choose times, not frame numbers; the frame on screen at a time is looked up in the real
presentation times. So a clip with a variable frame rate is sampled as it is watched. A sampler is a small object
that is injected into the processor; a third one needs two methods and no edit here.

Source: segments as in TSN (Wang et al. 2016, section 3.1). Random clips follow pytorchvideo's
`RandomClipSampler`, which is not used itself because it draws from Python's global generator; views come from its
`ConstantClipsPerVideoSampler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from multicoca.modality import require

_EARLY_S = 1e-4  # a frame counts as on screen this much early: times such as 1/30 s are rounded in files


@runtime_checkable
class TimeSampler(Protocol):
    """Chooses the moments of a video that make a sample."""

    def times(self, duration_s: float, num_frames: int, train: bool, generator: torch.Generator) -> np.ndarray:
        """Returns ascending times [num_frames] in seconds from 0 to `duration_s`."""
        ...

    def views(self, duration_s: float, num_frames: int, num_views: int) -> np.ndarray:
        """Returns times [num_views, num_frames] for an evaluation that averages over views."""
        ...


@dataclass(frozen=True)
class UniformSampler:
    """One moment in each of `num_frames` equal segments of the whole video: the middle, or in training a random one."""

    def times(self, duration_s: float, num_frames: int, train: bool, generator: torch.Generator) -> np.ndarray:
        """See `TimeSampler`."""
        within = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy() if train else 0.5
        return segment_times(0.0, duration_s, num_frames, within)

    def views(self, duration_s: float, num_frames: int, num_views: int) -> np.ndarray:
        """View v of V looks at (v + 1/2) / V of each segment, so together the views see V times as many moments."""
        return np.stack(
            [segment_times(0.0, duration_s, num_frames, (view + 0.5) / num_views) for view in range(num_views)]
        )


@dataclass(frozen=True)
class ClipSampler:
    """Segment middles within a clip of the video: a random clip in training, else the central one.

    Attributes:
        clip_duration_s: the length of the clip; a shorter video is taken whole.
    """

    clip_duration_s: float

    def __post_init__(self) -> None:
        if not self.clip_duration_s > 0:
            raise ValueError(f"clip_duration_s is {self.clip_duration_s}; expected a number of seconds > 0")

    def times(self, duration_s: float, num_frames: int, train: bool, generator: torch.Generator) -> np.ndarray:
        """See `TimeSampler`."""
        where = torch.rand((), generator=generator, dtype=torch.float64).item() if train else 0.5
        room = max(duration_s - self.clip_duration_s, 0.0)
        return segment_times(where * room, min(self.clip_duration_s, duration_s), num_frames)

    def views(self, duration_s: float, num_frames: int, num_views: int) -> np.ndarray:
        """Clips spread evenly as pytorchvideo and SlowFast spread them: of V clips, v starts at v / V of the room.

        Raises:
            ImportError: pytorchvideo is not installed.
        """
        clip_sampling = require("pytorchvideo.data.clip_sampling", "video")
        sampler = clip_sampling.ConstantClipsPerVideoSampler(Fraction(self.clip_duration_s), num_views)
        length = min(self.clip_duration_s, duration_s)
        views = []
        for _ in range(num_views):
            clip = sampler(0.0, Fraction(duration_s), {})
            views.append(segment_times(float(clip.clip_start_sec), length, num_frames))
            if duration_s <= self.clip_duration_s:
                return np.repeat(views, num_views, axis=0)  # the whole video, each time
        return np.stack(views)


def segment_times(start_s: float, length_s: float, num_frames: int, within: float | np.ndarray = 0.5) -> np.ndarray:
    """Cuts a stretch of time into equal segments and takes one moment of each.

    Args:
        start_s: where the stretch begins.
        length_s: how long it is.
        num_frames: the number of segments.
        within: where in a segment, from 0 (its start) to 1; one number or [num_frames].

    Returns:
        float64 times [num_frames].
    """
    return start_s + (np.arange(num_frames) + within) / num_frames * length_s


def frames_at(times_s: np.ndarray, frame_times_s: np.ndarray) -> np.ndarray:
    """Returns the indices of the frames on screen at the given times: the last frame that began by then.

    Args:
        times_s: any shape.
        frame_times_s: [frames], ascending, from 0.

    Returns:
        int64 indices of the shape of `times_s`; times outside the video give its first or last frame.
    """
    return (np.searchsorted(frame_times_s, times_s + _EARLY_S, side="right") - 1).clip(0, len(frame_times_s) - 1)
