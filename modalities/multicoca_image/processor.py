"""Image files to pixels, which are normalised on the device, and scenes of the shapes world to JPEG files.

Testing resizes the short side and crops the centre, as the published image encoders do; `timm_processor` reads their
constants from timm. Training crops a random part when `train_scale` says so, with the distribution of Inception
(torchvision's RandomResizedCrop) but all randomness from the generator that is passed in. A picture that has the
right size already skips all of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from multicoca.data.shapes.geometry import front_view
from multicoca.data.shapes.scene import Scene
from multicoca.modality import UnreadableFileError, check_sizes, normalized, require
from multicoca_image.decoding import OBJECTS, SUFFIXES, decode_image, is_picture, picture_of, suffix_of
from multicoca_image.timm_models import MAX_SIDE_PX, published_settings

_INTERPOLATIONS = ("bilinear", "bicubic")
_CROP_MODES = ("center", "squash")
_CROP_RATIO = (3 / 4, 4 / 3)  # width / height of random crops; torchvision's default
_CROP_TRIES = 10  # torchvision's
_MAX_ASPECT = 8  # longer pictures lose their ends before resizing, which the centre crop would cut anyway
_THUMBNAIL_PX = 160
_JPEG_QUALITY = 92
_MOST_PIXELS = 1 << 30  # of a picture, whatever a configuration says


@dataclass(frozen=True)
class ImageProcessor:
    """Reads images, see `multicoca.modality.Processor`, `ContentRecognizer`, `ObjectReader` and `SceneRenderer`.

    Attributes:
        size_px: height and width of the sample.
        mean: what is subtracted from each channel of [0, 1]; must be the encoder's.
        std: what each channel is divided by then.
        interpolation: "bicubic" or "bilinear", both with antialiasing.
        crop_pct: share of the resized side that the centre crop keeps, in (0, 1]; timm's word.
        crop_mode: "center" resizes the short side, "squash" both sides to the same, which loses no border.
        train_scale: smallest and largest share of the area that a training crop keeps; (1, 1) crops as in testing.
        horizontal_flip: mirror half of the training samples. Wrong when captions say "left" and "right".
        max_pixels: larger files are refused by their header; the default is Pillow's limit.
        scene_size_px: height and width of rendered scenes.
    """

    size_px: int = 224
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    train_scale: Sequence[float] = (1.0, 1.0)
    horizontal_flip: bool = False
    max_pixels: int = 89_478_485
    scene_size_px: int = 64

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    objects: ClassVar[str] = OBJECTS
    scene_suffix: ClassVar[str] = ".jpg"
    scene_facts: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for field in ("mean", "std", "train_scale"):  # YAML gives lists, which cannot be hashed or compared to tuples
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_sizes(most=MAX_SIDE_PX, size_px=self.size_px, scene_size_px=self.scene_size_px)
        check_sizes(most=_MOST_PIXELS, max_pixels=self.max_pixels)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must have 3 entries each, those of std above 0")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation is '{self.interpolation}'; choose one of {', '.join(_INTERPOLATIONS)}")
        if self.crop_mode not in _CROP_MODES:
            raise ValueError(f"crop_mode is '{self.crop_mode}'; choose one of {', '.join(_CROP_MODES)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; it must be a share in (0, 1]")
        if len(self.train_scale) != 2 or not 0 < self.train_scale[0] <= self.train_scale[1] <= 1:
            raise ValueError(
                f"train_scale is {self.train_scale}; it must be (smallest, largest) share of the area in (0, 1]"
            )

    def suffix_of(self, head: bytes) -> str:
        """See `multicoca.modality.ContentRecognizer`."""
        return suffix_of(head)

    def takes(self, value: Any) -> bool:
        """See `multicoca.modality.ObjectReader`."""
        return is_picture(value)

    def decode(self, file: Any, suffix: str = "") -> Image.Image:
        """Reads an image as an upright RGB picture. The content tells the format, `suffix` is not needed.

        Args:
            file: a path, the content of a file, a PIL picture, or an array or tensor of pixels.
            suffix: is not used.

        Raises:
            UnreadableFileError: the image is missing, empty, of another kind, too large or broken.
        """
        if isinstance(file, bytes):
            return decode_image(file, self.max_pixels)
        if not isinstance(file, Path):
            return picture_of(file, self.max_pixels)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UnreadableFileError(f"{file} cannot be read: {error.strerror}") from error
        return decode_image(data, self.max_pixels, str(file))

    def preprocess(self, raw: Image.Image, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns {"pixels": uint8 [3, size_px, size_px]}, cropped and resized."""
        image = torch.from_numpy(np.array(raw)).permute(2, 0, 1)
        if train and self.train_scale != (1.0, 1.0):
            image = self._resize(_random_crop(image, self.train_scale, generator), (self.size_px, self.size_px))
        else:
            image = self._resize_and_crop(image)
        if train and self.horizontal_flip and torch.rand((), generator=generator) < 0.5:
            image = image.flip(2)
        return {"pixels": image.contiguous()}

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns {"pixels": uint8 [batch, 3, size_px, size_px]}."""
        return {"pixels": torch.stack([sample["pixels"] for sample in samples])}

    def finish(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns {"pixels": float32 [batch, 3, size_px, size_px]}, normalised."""
        return {**inputs, "pixels": normalized(inputs["pixels"], self.mean, self.std)}

    def thumbnail(self, raw: Image.Image) -> Image.Image:
        """Returns a copy of at most 160 px."""
        small = raw.copy()
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        return small

    def render(self, scene: Scene) -> bytes:
        """Draws the front view of a scene at rest as a JPEG file."""
        file = io.BytesIO()
        view = Image.fromarray(front_view(scene, 0.5, self.scene_size_px))
        view.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # full colour: objects are a few pixels wide
        return file.getvalue()

    def _resize(self, image: Tensor | Image.Image, size_px: tuple[int, int]) -> Tensor | Image.Image:
        """Resizes to (height, width): a picture by Pillow, as published models were tested, a tensor more quickly."""
        transforms = require("torchvision.transforms.v2", "image")
        mode = transforms.InterpolationMode(self.interpolation)
        return transforms.functional.resize(image, list(size_px), interpolation=mode, antialias=True)

    def _resize_and_crop(self, image: UInt8[Tensor, "3 _ _"]) -> UInt8[Tensor, "3 height width"]:
        """Resizes by Pillow and crops the centre, to the grey level as timm and open_clip do."""
        side = math.floor(self.size_px / self.crop_pct)
        if self.crop_mode == "squash":
            target = (side, side)
        else:
            longest = _MAX_ASPECT * min(image.shape[1:])
            image = _center_crop(image, min(image.shape[1], longest), min(image.shape[2], longest))
            _, height, width = image.shape
            target = (side * height // min(height, width), side * width // min(height, width))
        if image.shape[1:] != target:
            picture = self._resize(Image.fromarray(image.permute(1, 2, 0).numpy()), target)
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return _center_crop(image, self.size_px, self.size_px)


def timm_processor(name: str, **settings: Any) -> ImageProcessor:
    """Returns the processor that a model of timm was published with; the model itself is not built.

    Args:
        name: a timm name with an optional tag, e.g. "vit_base_patch16_siglip_224".
        settings: of `ImageProcessor`; they go before what timm says.

    Returns:
        A processor with timm's image size, mean, standard deviation, interpolation, crop_pct and crop_mode.

    Raises:
        ValueError: timm has no such model or tag, a setting is unknown, or timm prepares images in a way that
            `ImageProcessor` cannot.
        ImportError: timm is not installed.

    Source: timm.data.resolve_data_config, and timm.data.create_transform for testing.
    """
    known = [field.name for field in fields(ImageProcessor)]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"timm_processor does not know {', '.join(unknown)}; it takes name, {', '.join(known)}")
    published = require("timm.data", "image").resolve_data_config(pretrained_cfg=published_settings(name))
    _, height, width = published.pop("input_size")
    if height != width and "size_px" not in settings:
        raise ValueError(f"'{name}' takes images of {height} x {width} px, samples are square; set size_px")
    return ImageProcessor(**{"size_px": height, **published, **settings})


def _center_crop(image: UInt8[Tensor, "3 _ _"], height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


def _random_crop(
    image: UInt8[Tensor, "3 _ _"], scale: Sequence[float], generator: torch.Generator
) -> UInt8[Tensor, "3 height width"]:
    """Cuts out a random part of the given share of the area; the centre when ten tries do not fit.

    Source: torchvision.transforms.v2.RandomResizedCrop.
    """
    _, height, width = image.shape
    log_ratio = [math.log(ratio) for ratio in _CROP_RATIO]
    draws = torch.rand((_CROP_TRIES, 4), generator=generator, dtype=torch.float64).tolist()
    for for_area, for_ratio, for_top, for_left in draws:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        ratio = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * for_ratio)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int((height - crop_height + 1) * for_top), int((width - crop_width + 1) * for_left)
            return image[:, top : top + crop_height, left : left + crop_width]
    ratio = min(max(width / height, _CROP_RATIO[0]), _CROP_RATIO[1])
    return _center_crop(image, min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio))))
