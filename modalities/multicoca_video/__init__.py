"""The video modality: reads video files, samples frames by time, encodes them with an injected frame encoder."""

from multicoca_video.encoder import VideoEncoder
from multicoca_video.processor import VideoProcessor
from multicoca_video.reader import Video, open_video
from multicoca_video.sampling import ClipSampler, TimeSampler, UniformSampler, frames_at

__all__ = [
    "ClipSampler",
    "TimeSampler",
    "UniformSampler",
    "Video",
    "VideoEncoder",
    "VideoProcessor",
    "frames_at",
    "open_video",
]
