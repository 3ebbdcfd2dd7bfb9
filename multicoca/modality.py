"""The contract of a modality: what an encoder package provides and the core relies on.

A modality has two halves because they live in different places: the `Processor` goes to data workers (a plain
picklable object without parameters), the `Encoder` goes to the training device. `Modality` only binds them.
`multicoca.testing.check_modality` checks an implementation against this page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from multicoca.reading import UnreadableFileError, require
from multicoca.tokens import Tokens

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

    from multicoca.data.shapes import Scene

__all__ = [
    "ENTRY_POINT_GROUP", "HEAD_BYTES", "ContentRecognizer", "Encoder", "Finisher", "FullPrecisionEncoder", "Modality",
    "ObjectReader", "Processor", "Remarker", "Resizable", "SceneRenderer", "TensorBoardViewer", "UnreadableFileError",
    "as_array", "check_sizes", "configuration_folders", "finished", "installed_modalities", "normalized", "require",
]  # fmt: skip
ENTRY_POINT_GROUP = "multicoca.modalities"
HEAD_BYTES = 1024  # of a file, by which a `ContentRecognizer` knows it
MAX_SIZE, MAX_LAYERS = 1 << 16, 1000  # beyond all published ones


@runtime_checkable
class Processor(Protocol):
    """From a file to a sample, and from samples to the encoder's inputs. Picklable, without parameters.

    Attributes:
        suffixes: the file endings it reads, in lower case with the dot, e.g. (".jpg", ".png").
    """

    suffixes: tuple[str, ...]

    def decode(self, file: Path | bytes, suffix: str = "") -> Any:
        """Reads a file. `suffix` names the format when `file` is bytes.

        Raises:
            UnreadableFileError: the file is missing, broken, empty or of another kind. Where `decode` only opens the
                file, `preprocess` raises it.
        """
        ...

    def preprocess(self, raw: Any, train: bool, generator: torch.Generator) -> dict[str, Tensor]:
        """Turns what `decode` gave into one sample and leaves `raw` as it was. All randomness is from `generator`."""
        ...

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Joins samples into the encoder's inputs, padding with a mask where sizes differ.

        A boolean input [batch, length, ...] is a mask: True marks what is real. Other flags have another type.
        """
        ...

    def thumbnail(self, raw: Any) -> Image:
        """Draws an RGB picture of at most 1024 x 1024 pixels in all, for reports and TensorBoard.

        It leaves `raw` as it was, as do `show` and `remarks`.
        """
        ...


@runtime_checkable
class ContentRecognizer(Protocol):
    """What a processor adds when the first bytes of a file show its format, so that no suffix is needed."""

    def suffix_of(self, head: bytes) -> str:
        """Returns the suffix, one of `suffixes`, of a file that begins with these bytes.

        Args:
            head: the first `HEAD_BYTES` bytes, or the whole of a shorter file.

        Returns:
            "" where the bytes are not of a kind that it reads, or do not show the kind.
        """
        ...


@runtime_checkable
class ObjectReader(Protocol):
    """What a processor adds when its `decode` also reads objects in memory, such as arrays.

    An object takes the same path as a file: the same content gives the same sample. What `decode` returned is one of
    the objects. Where an object cannot be read, `decode` raises `UnreadableFileError`, which says what was got and
    what is expected.

    Attributes:
        objects: what it takes, for messages, e.g. "an array or tensor of numbers [samples]".
    """

    objects: str

    def takes(self, value: Any) -> bool:
        """Whether a value is one of the objects, judged by its type and shape alone; never for paths and bytes."""
        ...


@runtime_checkable
class Finisher(Protocol):
    """What a processor adds when its samples travel in a smaller form than the encoder takes, such as uint8."""

    def finish(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the encoder's inputs for collated ones, on the device on which these lie.

        What is finished already stays as it is. On a GPU it must not wait for results.
        """
        ...


@runtime_checkable
class SceneRenderer(Protocol):
    """What a processor adds when it can also draw the shapes world's scenes as files of its kind.

    Attributes:
        scene_suffix: the ending of the files that `render` makes, e.g. ".jpg".
        scene_facts: what this kind of file shows beyond a front view, any of {"motion", "depth"}.
    """

    scene_suffix: str
    scene_facts: frozenset[str]

    def render(self, scene: Scene) -> bytes:
        """Returns the bytes of a real file that shows the scene. The same scene gives the same content."""
        ...


@runtime_checkable
class TensorBoardViewer(Protocol):
    """What a processor adds when TensorBoard can show its kind of file as more than a thumbnail."""

    def show(self, writer: SummaryWriter, tag: str, raw: Any, step: int) -> None:
        """Writes what `decode` gave under a tag, for example as an animation or a mesh."""
        ...


@runtime_checkable
class Remarker(Protocol):
    """What a processor adds when a file that can be read may still be odd: a cloud without colour, for example."""

    def remarks(self, raw: Any) -> Sequence[str]:
        """Returns what is worth knowing of what `decode` gave. `data verify` counts the files with each remark.

        Numbers and names in quotes may differ between files; remarks that are else equal are of one kind.
        """
        ...


@runtime_checkable
class Encoder(Protocol):
    """An `nn.Module` from a modality's inputs to `Tokens`.

    A sample's tokens depend on that sample alone: not on the others of its batch, in training as in evaluation (no
    BatchNorm, unless it is frozen), and not on what the inputs hold where their mask is False. All that the tokens
    depend on is in the state_dict or follows from the constructor's arguments.

    Where its constructor has arguments `pretrained` and `checkpoint`, they name weights to begin with; a model folder,
    which has weights of its own, leaves them out.

    Attributes:
        width: the size of the token vectors.
        blocks: the units for activation checkpointing, compilation, sharding and layer-wise learning rates; at least
            one, each a module of the encoder.
    """

    width: int
    blocks: nn.ModuleList

    def __call__(self, inputs: dict[str, Tensor]) -> Tokens:
        """Encodes collated inputs."""
        ...


@runtime_checkable
class Resizable(Protocol):
    """What an encoder adds when weights of another input size fit it after a change, such as a table of positions."""

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights of such an encoder of another size, by name, in the sizes of this one.

        What cannot be resized is returned as it is.
        """
        ...


@runtime_checkable
class FullPrecisionEncoder(Protocol):
    """What an encoder adds when some of its inputs must not be rounded to the type of its parameters.

    A model in bf16 or fp16 is given its floating inputs in that type, these excepted. The encoder computes with them in
    float32, for example differences of coordinates, and rounds the results itself.

    Attributes:
        full_precision_inputs: the names of these inputs.
    """

    full_precision_inputs: tuple[str, ...]


@dataclass(frozen=True)
class Modality:
    """Binds the two halves of a modality under the name that the configuration gives it."""

    name: str
    processor: Processor
    encoder: nn.Module


def installed_modalities() -> Mapping[str, EntryPoint]:
    """Returns the entry points of all installed modality packages by modality name.

    An entry point names the import package, e.g. `audio = "multicoca_audio"`. Its `TARGETS` says what configurations
    may build of it, by role: `{"processor": ("AudioProcessor",), "encoder": ("AudioEncoder",), "part": (...)}`; a part
    is what a processor or an encoder takes as an argument.
    """
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def configuration_folders() -> list[Traversable]:
    """Returns the `configs` folders of the modality packages that have one and can be imported."""
    folders = []
    for point in installed_modalities().values():
        with suppress(ModuleNotFoundError):  # `doctor` reports packages that cannot be imported
            folders.append(files(point.value) / "configs")
    return [folder for folder in folders if folder.is_dir()]


def finished(processor: Processor | None, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the encoder takes for collated inputs; see `Finisher`. Without a processor they are finished."""
    return processor.finish(inputs) if isinstance(processor, Finisher) else dict(inputs)


def normalized(
    levels: Shaped[Tensor, "*batch channels height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*batch channels height width"]:
    """Returns (levels / 255 - mean) / std by channel, in float32; floating numbers are returned as they are.

    Args:
        levels: uint8.
        mean: a number for each channel.
        std: likewise.
    """
    if levels.is_floating_point():
        return levels
    values = levels.to(torch.float32).div_(255)
    for channel, (center, spread) in enumerate(zip(mean, std, strict=True)):  # numbers go to a GPU without a wait
        values.select(-3, channel).sub_(center).div_(spread)
    return values


def check_sizes(least: int = 1, most: int = MAX_SIZE, **sizes: int) -> None:
    """Checks sizes by their names, so that a configuration from elsewhere cannot take all memory or time.

    Raises:
        ValueError: one is no whole number, or out of range.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or not least <= size <= most:
            raise ValueError(f"{name} is {size!r}; expected a whole number from {least} to {most:,}")


def as_array(value: Any) -> np.ndarray | None:
    """Returns an array or tensor as a numpy array, on the CPU and without its gradient; None for anything else.

    numpy has no bfloat16; such tensors become float32.
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Tensor):
        return None
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
