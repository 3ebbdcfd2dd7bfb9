"""From video files to samples: open, choose moments, crop, scale; and from scenes to video files.

The decision: a decoded video is only a list of times until the moments are chosen, so just those frames are ever
converted. They stay uint8 until they are on the device, where they become (x / 255 - mean) / std, like an image's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.nn import functional

from multicoca.data.shapes import Scene
from multicoca.modality import check_sizes, normalized
from multicoca_video.magic import suffix_of
from multicoca_video.objects import OBJECTS, FrameArray, clip_of, is_clip
from multicoca_video.reader import Video, check_backends, open_video
from multicoca_video.sampling import TimeSampler, UniformSampler, frames_at
from multicoca_video.scan import MAX_PIXELS
from multicoca_video.scene_video import write_scene

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_MOST_PIXELS = 1 << 30  # of a frame or a clip, whatever a configuration says
_ANIMATION_FRAMES = 16
_ANIMATION_PX = 256  # longer side at most
_THUMBNAIL_FRAMES = 4
_THUMBNAIL_PX = 128  # height at most
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height of random crops, torchvision's default


@dataclass(frozen=True)
class VideoProcessor:
    """See `multicoca.modality.Processor` and `SceneRenderer`.

    Attributes:
        num_frames: frames per sample; a shorter video repeats frames.
        size_px: height and width of the frames.
        sampler: chooses the moments.
        mean: of the pixels in [0, 1], one value per colour or one for all.
        std: likewise.
        crop_scale: in training, the share of the picture's area that a random crop covers, (least, most); None
            takes the central square as in evaluation. All frames of a clip get the same crop.
        flip_probability: in training, how often a clip is mirrored. Captions that name sides forbid it.
        backends: what may read files, see `open_video`; PyAV alone is the quickest on most machines.
        max_pixels: a file with larger frames is refused by its header.
        scene_size_px: height and width of the videos that `render` makes, even.
        scene_frames: their number of frames, at 8 per second.
    """

    suffixes: ClassVar[tuple[str, ...]] = (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".gif"),
    )
    objects: ClassVar[str] = OBJECTS
    scene_suffix: ClassVar[str] = ".mp4"
    scene_facts: ClassVar[frozenset[str]] = frozenset({"motion"})

    num_frames: int = 8
    size_px: int = 64
    sampler: TimeSampler = UniformSampler()
    mean: float | Sequence[float] = 0.5
    std: float | Sequence[float] = 0.5
    crop_scale: Sequence[float] | None = None
    flip_probability: float = 0.0
    backends: Sequence[str] = ("pyav",)
    max_pixels: int = MAX_PIXELS
    scene_size_px: int = 64
    scene_frames: int = 12

    def __post_init__(self) -> None:
        check_sizes(num_frames=self.num_frames, size_px=self.size_px, scene_frames=self.scene_frames)
        clip_pixels = self.num_frames * self.size_px**2
        check_sizes(most=_MOST_PIXELS, max_pixels=self.max_pixels, **{"num_frames * size_px^2": clip_pixels})
        if self.scene_size_px < 16 or self.scene_size_px % 2:
            raise ValueError(f"scene_size_px is {self.scene_size_px}; H.264 takes even numbers, here from 16 on")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}; expected a number from 0 to 1")
        if self.crop_scale is not None:
            least, most = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
            if not 0 < least <= most <= 1:
                raise ValueError(
                    f"crop_scale is {list(self.crop_scale)}; expected [least, most], 0 < least <= most <= 1"
                )
        if min(_per_color(self.std, "std")) <= 0:
            raise ValueError(f"std is {self.std}; expected numbers > 0")
        _per_color(self.mean, "mean")
        check_backends(self.backends)

    def suffix_of(self, head: bytes) -> str:
        """See `multicoca.modality.ContentRecognizer`."""
        return suffix_of(head)

    def takes(self, value: Any) -> bool:
        """See `multicoca.modality.ObjectReader`."""
        return is_clip(value)

    def decode(self, file: Any, suffix: str = "") -> Video | FrameArray:
        """Opens a video; its content tells the format.

        Args:
            file: a path, the content of a file, or a clip in memory, see `OBJECTS`.
            suffix: is not used.

        Raises:
            UnreadableFileError: the video is missing, empty, of another kind, or nothing in it can be decoded.
        """
        if not isinstance(file, (bytes, Path)):
            return clip_of(file, self.max_pixels)
        return open_video(file, self.backends, self.max_pixels)

    def preprocess(self, raw: Video | FrameArray, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Makes one sample.

        Returns:
            {"frames": uint8 [frames, 3, size_px, size_px], "times_s": float32 [frames]}.

        Raises:
            UnreadableFileError: nothing could be decoded.
        """
        times = self.sampler.times(raw.duration_s, self.num_frames, train, generator)
        return self._sample(raw, times, train, generator)

    def views(self, raw: Video | FrameArray, num_views: int) -> list[dict[str, Tensor]]:
        """Makes several samples of one video, whose predictions an evaluation averages (cropped at the centre).

        Raises:
            UnreadableFileError: nothing could be decoded.
        """
        views = self.sampler.views(raw.duration_s, self.num_frames, num_views)
        return [self._sample(raw, times, False, torch.Generator()) for times in views]

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Joins samples; shorter ones are padded at their end with zeros.

        Returns:
            {"frames": uint8 [batch, frames, 3, size_px, size_px], "mask": bool [batch, frames]}, without a mask where
            all frames are real: attention is faster then.
        """
        lengths = torch.tensor([len(sample["frames"]) for sample in samples])
        if (lengths == lengths[0]).all():
            return {"frames": torch.stack([sample["frames"] for sample in samples])}
        frames = torch.nn.utils.rnn.pad_sequence([sample["frames"] for sample in samples], batch_first=True)
        return {"frames": frames, "mask": torch.arange(frames.shape[1]) < lengths[:, None]}

    def finish(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inputs with frames as float32, (x / 255 - mean) / std."""
        mean, std = _per_color(self.mean, "mean"), _per_color(self.std, "std")
        return {**inputs, "frames": normalized(inputs["frames"], mean, std)}

    def thumbnail(self, raw: Video | FrameArray) -> Image.Image:
        """Draws four frames side by side, from the first to the last."""
        chosen = np.linspace(0, raw.num_frames - 1, _THUMBNAIL_FRAMES).round().astype(int)
        return Image.fromarray(np.concatenate(raw.prepared(chosen, _thumbnail_of), axis=1))

    def show(self, writer: SummaryWriter, tag: str, raw: Video | FrameArray, step: int) -> None:
        """Writes the clip as an animation, at most 16 of its frames at their own pace."""
        chosen = np.unique(np.linspace(0, raw.num_frames - 1, _ANIMATION_FRAMES).round().astype(int))
        first, *others = raw.prepared(chosen, _animation_frame)
        animation = io.BytesIO()
        pause_ms = max(20, round(1000 * raw.duration_s / len(chosen)))  # browsers slow down what is quicker
        first.save(animation, "GIF", save_all=True, append_images=others, duration=pause_ms, loop=0)
        content, (width, height) = animation.getvalue(), first.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def render(self, scene: Scene) -> bytes:
        """Returns a scene and its motion as an H.264 MP4 file."""
        return write_scene(scene, self.scene_size_px, self.scene_frames)

    def _sample(
        self, raw: Video | FrameArray, times: np.ndarray, train: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        crop: tuple[int, int, int, int] | None = None

        def prepare(picture: np.ndarray) -> Tensor:
            nonlocal crop
            if crop is None:  # all frames of a clip have the same
                crop = self._crop(*picture.shape[:2], train, generator)
            top, left, high, wide = crop
            part = np.ascontiguousarray(picture[top : top + high, left : left + wide].transpose(2, 0, 1))
            return _resized(torch.from_numpy(part)[None], self.size_px)[0]

        frames = torch.stack(raw.prepared(frames_at(times, raw.frame_times_s), prepare))
        if train and self.flip_probability > 0 and torch.rand((), generator=generator).item() < self.flip_probability:
            frames = frames.flip(-1)
        return {"frames": frames, "times_s": torch.from_numpy(times).float()}

    def _crop(self, height: int, width: int, train: bool, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Returns (top, left, height, width) of what is kept of a frame: the central square, or in training a draw."""
        if train and self.crop_scale is not None:
            return random_crop(height, width, tuple(self.crop_scale), generator)
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side


def _thumbnail_of(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height <= _THUMBNAIL_PX:
        return picture
    size = max(1, round(width * _THUMBNAIL_PX / height)), _THUMBNAIL_PX
    return np.asarray(Image.fromarray(picture).resize(size))


def _animation_frame(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((_ANIMATION_PX, _ANIMATION_PX))
    return image


def _resized(frames: UInt8[Tensor, "frames 3 height width"], size_px: int) -> UInt8[Tensor, "frames 3 size_px size_px"]:
    if frames.shape[-2:] == (size_px, size_px):
        return frames
    return functional.interpolate(frames, (size_px, size_px), mode="bilinear", antialias=True)


def random_crop(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Draws a crop as torchvision's `RandomResizedCrop` does: a share of the area and a ratio of the sides.

    Args:
        height: of the picture, in px.
        width: of the picture, in px.
        scale: the least and the largest share of the area.
        generator: what the randomness is drawn from.

    Returns:
        (top, left, height, width) in px. When ten draws do not fit the picture, the central square.
    """
    low, high = (math.log(ratio) for ratio in _CROP_RATIO)
    for _ in range(10):
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = height * width * (scale[0] + draws[0] * (scale[1] - scale[0]))
        ratio = math.exp(low + draws[1] * (high - low))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1)), tall, wide
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _per_color(value: float | Sequence[float], name: str) -> tuple[float, ...]:
    """Returns three numbers, given one or three."""
    values = (float(value),) * 3 if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(values) != 3:
        raise ValueError(f"{name} is {value}; expected one number, or three for red, green and blue")
    return values
