"""From a point file to the encoder's inputs: axes, unit, normalisation, subset, augmentation.

Which axis points up, the unit and the normalisation are explicit settings that are stored with the model, since
a wrong one spoils results without an error. Inside, z is up and lengths are metres.

Source: centring and scaling to the unit sphere, 0.4 for missing colours: OpenShape (arXiv 2305.10764) and Uni3D
(arXiv 2310.06773), released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multicoca.data.shapes.geometry import surface_points
from multicoca.modality import check_sizes
from multicoca.reading import refuse_broken
from multicoca_points.cloud import PointCloud
from multicoca_points.objects import OBJECTS, cloud_of, is_cloud
from multicoca_points.ply import write_ply
from multicoca_points.reader import MAX_DROPPED_SHARE, SUFFIXES, finite, read_points, suffix_of
from multicoca_points.thumbnail import draw_points

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

    from multicoca.data.shapes import Scene

TO_Z_UP = {  # rotations whose last row is the axis that points up
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "ft": 0.3048, "in": 0.0254}  # international foot and inch, 1959
NORMALIZATIONS = ("unit_sphere", "center", "none")
_MOST_POINTS = 1 << 26  # whatever a configuration says


@dataclass(frozen=True)
class PointsAugmentation:
    """Random changes in training; the defaults change nothing.

    Attributes:
        rotation_degrees: turns about the vertical axis by up to this angle to either side.
        scale: multiplies all positions by a factor drawn from this range.
        jitter: standard deviation of the noise on each coordinate, after normalisation.
        color_drop: probability with which a cloud loses its colours.
    """

    rotation_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0
    color_drop: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.rotation_degrees <= 180 and self.jitter >= 0 and 0 <= self.color_drop <= 1):
            raise ValueError(f"{self}: rotation_degrees must lie in [0, 180], jitter be >= 0, color_drop in [0, 1]")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"the range of scale is {self.scale}; it must be (low, high) with 0 < low <= high")


def _loses_its_shape(xyz: np.ndarray) -> bool:
    """Whether float32 rounds positions by more than a thousandth of what the cloud measures."""
    step = np.spacing(np.float32(np.abs(xyz).max()))
    return bool(step > 1e-3 * (xyz.max(axis=0) - xyz.min(axis=0)).max())


class PointsProcessor:
    """Reads, normalises and pads point clouds; draws the shapes world as coloured PLY files.

    Args:
        num_points: points per sample at most; larger clouds are subsampled, smaller ones kept.
        up_axis: which axis of the files points up: "x", "y" or "z".
        unit: the unit of the files, a key of METRES.
        normalize: "unit_sphere" (centroid at the origin, farthest point at 1), "center" (centroid at the origin)
            or "none" (absolute places, in metres).
        color_default: every channel of a point without colour.
        num_surface_points: points that are sampled on the surface of a mesh file.
        surface_seed: what that sampling, and the subset in evaluation, are drawn from.
        augmentation: random changes in training.
        scene_points: points in the files that `render` makes.
        max_dropped_share: a cloud of which a larger share of points is not finite is refused.
        thumbnail_extent: half the side, in metres, of the cube around the origin that thumbnails show; None fits
            each cloud.

    Raises:
        ValueError: a setting is out of range; the message lists the valid ones.
    """

    suffixes = SUFFIXES
    objects = OBJECTS
    scene_suffix = ".ply"
    scene_facts = frozenset({"depth"})

    def __init__(
        self,
        num_points: int = 1024,
        up_axis: str = "z",
        unit: str = "m",
        normalize: str = "unit_sphere",
        color_default: float = 0.4,
        num_surface_points: int = 10000,
        surface_seed: int = 0,
        augmentation: PointsAugmentation | None = None,
        scene_points: int = 1024,
        max_dropped_share: float = MAX_DROPPED_SHARE,
        thumbnail_extent: float | None = None,
    ) -> None:
        for name, value, valid in (
            ("up_axis", up_axis, tuple(TO_Z_UP)),
            ("unit", unit, tuple(METRES)),
            ("normalize", normalize, NORMALIZATIONS),
        ):
            if value not in valid:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(valid)}")
        check_sizes(most=_MOST_POINTS, num_points=num_points, num_surface_points=num_surface_points)
        check_sizes(most=_MOST_POINTS, scene_points=scene_points)
        if not 0 <= max_dropped_share < 1:
            raise ValueError(f"max_dropped_share is {max_dropped_share}; it must lie in [0, 1)")
        if not 0 <= color_default <= 1:
            raise ValueError(f"color_default is {color_default}; it must lie in [0, 1]")
        self.num_points = num_points
        self.up_axis = up_axis
        self.unit = unit
        self.normalize = normalize
        self.color_default = color_default
        self.num_surface_points = num_surface_points
        self.surface_seed = surface_seed
        self.augmentation = augmentation or PointsAugmentation()
        self.scene_points = scene_points
        self.max_dropped_share = max_dropped_share
        self.thumbnail_extent = thumbnail_extent

    def suffix_of(self, head: bytes) -> str:
        """See `multicoca.modality.ContentRecognizer`; text formats without a header are not recognised."""
        return suffix_of(head)

    def takes(self, value: Any) -> bool:
        """See `multicoca.modality.ObjectReader`."""
        return is_cloud(value)

    def decode(self, file: Any, suffix: str = "") -> PointCloud:
        """Reads points or a mesh.

        Args:
            file: a path or the content of a file, see `read_points`; or a cloud in memory, see `OBJECTS`.
            suffix: the format, needed for bytes.

        Raises:
            UnreadableFileError: it cannot be used; the message is the reason.
        """
        if not isinstance(file, (bytes, Path)):
            with refuse_broken("cannot take these points"):
                return finite(cloud_of(file), self.max_dropped_share)
        return read_points(file, suffix, self.num_surface_points, self.surface_seed, self.max_dropped_share)

    def preprocess(self, raw: PointCloud, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns {"xyz": [n, 3], "rgb": [n, 3]}, float32, n = min(points, num_points).

        In training the subset and the augmentation come from `generator`; in evaluation the subset is the same
        every time and the generator is not used.
        """
        xyz = self._normalized(self._upright(raw.xyz))
        chosen = self._subset(len(xyz), generator if train else None)
        points = torch.from_numpy(np.ascontiguousarray(xyz[chosen], dtype=np.float32))
        colors = torch.from_numpy(self._colors(raw, chosen))
        return self._augment(points, colors, generator) if train else {"xyz": points, "rgb": colors}

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns {"xyz": [B, N, 3], "rgb": [B, N, 3], "mask": [B, N]}; N is the largest sample's size.

        There is no mask where all points are real and no two of a cloud coincide: attention is faster then.
        """
        sizes = torch.tensor([len(sample["xyz"]) for sample in samples])
        joined = {
            key: torch.nn.utils.rnn.pad_sequence([sample[key] for sample in samples], batch_first=True)
            for key in ("xyz", "rgb")
        }
        if (sizes == sizes[0]).all() and all(_are_apart(sample["xyz"]) for sample in samples):
            return joined
        return {**joined, "mask": torch.arange(int(sizes.max())) < sizes[:, None]}

    def thumbnail(self, raw: PointCloud) -> Image:
        """Draws the cloud from the front, a little from the right and above."""
        return draw_points(self._upright(raw.xyz), self._colors(raw, slice(None)), self.thumbnail_extent)

    def remarks(self, raw: PointCloud) -> list[str]:
        """Returns what was decided while reading, and what makes a cloud useless: see `multicoca.modality.Remarker`."""
        found = list(raw.remarks)
        if raw.rgb is None:
            found.append("no point has a colour")
        elif (raw.rgb == 1).all():
            found.append("all points are white")
        elif (raw.rgb == 0).all():
            found.append("all points are black")
        if (raw.xyz == raw.xyz[0]).all():
            found.append("all points are equal")
        elif self.normalize == "none" and _loses_its_shape(raw.xyz):
            found.append("it lies so far from the origin that float32 loses its shape; set normalize to 'center'")
        return found

    def show(self, writer: SummaryWriter, tag: str, raw: PointCloud, step: int) -> None:
        """Writes the cloud for TensorBoard's 3D view, whose y axis points up; at most `num_points` of its points."""
        chosen = self._subset(len(raw.xyz), None)
        xyz = self._upright(raw.xyz)[chosen]
        if _loses_its_shape(xyz):  # the view looks at the cloud, wherever it is
            xyz = xyz - xyz.mean(axis=0)
        x, y, z = torch.from_numpy(np.ascontiguousarray(xyz, dtype=np.float32)).unbind(1)
        colors = torch.from_numpy(self._colors(raw, chosen) * 255).round().to(torch.uint8)
        style = {"material": {"cls": "PointsMaterial", "size": 0.03}}
        writer.add_mesh(tag, torch.stack([x, z, -y], dim=1)[None], colors[None], config_dict=style, global_step=step)

    def render(self, scene: Scene) -> bytes:
        """Returns a binary PLY file with points on the surfaces of the scene, z up. Read it with unit="m"."""
        return write_ply(*surface_points(scene, self.scene_points))

    def _upright(self, xyz: np.ndarray) -> np.ndarray:
        """Rotates to z up and scales to metres."""
        if self.up_axis == "z" and self.unit == "m":
            return xyz
        return xyz @ (np.asarray(TO_Z_UP[self.up_axis], dtype=np.float64).T * METRES[self.unit])

    def _normalized(self, xyz: np.ndarray) -> np.ndarray:
        """Centres and scales by all points, so that the subset does not change the result."""
        if self.normalize == "none":
            return xyz
        centered = xyz - xyz.mean(axis=0, dtype=np.float64)
        if self.normalize == "unit_sphere":
            radius = math.sqrt(np.square(centered).sum(axis=1).max())
            centered = centered / radius if radius > 0 else centered
        return centered

    def _subset(self, count: int, generator: torch.Generator | None) -> np.ndarray | slice:
        """Chooses `num_points` of the points without repetition, or all when there are no more."""
        if count <= self.num_points:
            return slice(None)
        if generator is not None:
            return torch.randperm(count, generator=generator)[: self.num_points].numpy()
        return np.random.default_rng(self.surface_seed).permutation(count)[: self.num_points]

    def _colors(self, raw: PointCloud, chosen: np.ndarray | slice) -> np.ndarray:
        """Returns the chosen points' colours with the default where there is none."""
        default = np.float32(self.color_default)
        if raw.rgb is None:
            return np.full(raw.xyz[chosen].shape, default)
        rgb = raw.rgb[chosen]
        return np.where(np.isfinite(rgb), rgb, default)

    def _augment(self, xyz: Tensor, rgb: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        settings = self.augmentation
        if settings.rotation_degrees > 0:
            angle = math.radians(settings.rotation_degrees) * (2 * torch.rand((), generator=generator).item() - 1)
            cosine, sine = math.cos(angle), math.sin(angle)
            xyz = xyz @ torch.tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        low, high = settings.scale
        if (low, high) != (1.0, 1.0):
            xyz = xyz * (low + (high - low) * torch.rand((), generator=generator))
        if settings.jitter > 0:
            xyz = xyz + settings.jitter * torch.randn(xyz.shape, generator=generator)
        if settings.color_drop > 0 and torch.rand((), generator=generator).item() < settings.color_drop:
            rgb = torch.full_like(rgb, self.color_default)
        return {"xyz": xyz, "rgb": rgb}


def _are_apart(xyz: Float[Tensor, "points 3"]) -> bool:
    """Whether no two points lie at the same place."""
    rows = np.ascontiguousarray(xyz.numpy() + np.float32(0))  # -0 becomes 0
    return len(np.unique(rows.view([("", rows.dtype)] * 3))) == len(rows)
