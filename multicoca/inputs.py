"""From whatever a user holds to samples: who reads it, by its suffix, its first bytes or its type.

An item is a path, a URL, the content of a file, a binary file object, or an object that a processor takes. Several come
in a list, a tuple, a generator or any other iterable. They are consumed one by one, and only samples are kept: at most
a batch of each modality.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote

import numpy as np
from torch import Tensor

from multicoca.data.sample import sample_of
from multicoca.data.storage import local_path, read_whole
from multicoca.modality import HEAD_BYTES, ContentRecognizer, ObjectReader, Processor, UnreadableFileError
from multicoca.reading import refuse_broken

T = TypeVar("T")
ON_ERROR = ("raise", "skip")
_MOST_REASONS = 3  # in a warning
_BYTES = (bytes, bytearray, memoryview)
_AFTER_A_NAME = re.compile(r"[?#]|::")  # in a URL: a query, a part of the file, the next link of fsspec's chains


@runtime_checkable
class _FileObject(Protocol):
    def read(self) -> bytes: ...


@dataclass(frozen=True)
class SampleBatch:
    """Samples of one modality.

    Attributes:
        modality: who read them.
        places: which items they are, counted from 0.
        items: these items, as they were given.
        inputs: the samples, collated.
    """

    modality: str
    places: tuple[int, ...]
    items: tuple[Any, ...]
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class UnreadableItem:
    """An item that cannot be used.

    Attributes:
        place: which item it is, counted from 0.
        item: as it was given.
        error: why it cannot be used.
    """

    place: int
    item: Any
    error: UnreadableFileError

    @property
    def name(self) -> str:
        """What it is called in messages."""
        described = describe_item(self.item)
        return described if _has_name(self.item) else f"item {self.place} ({described})"

    def __str__(self) -> str:
        return f"{self.name}: {self.error}"


@dataclass(frozen=True)
class Transform:
    """Turns an item into a sample, in a data worker for example: it can be pickled and holds no parameters.

    Attributes:
        modality: who reads the items.
        processor: of this modality.
    """

    modality: str
    processor: Processor

    def __call__(self, item: Any) -> dict[str, Tensor]:
        """Returns the sample of an item, as in evaluation.

        Raises:
            UnreadableFileError: the item cannot be used.
        """
        try:
            return _sampled(item, {self.modality: self.processor}, self.modality)[1]
        except UnreadableFileError as error:
            raise UnreadableFileError(f"{describe_item(item)}: {error}") from error


def sample_batches(
    items: Any, processors: Mapping[str, Processor], batch_size: int, modality: str | None = None
) -> Iterator[SampleBatch | UnreadableItem]:
    """Reads items and collates them by modality; a batch comes as soon as it is full, an unreadable item at once.

    Args:
        items: one item or an iterable of them.
        processors: by modality.
        batch_size: items of a batch.
        modality: who reads the items; None finds out for each of them.

    Raises:
        ValueError: the batch size is below 1, or there is no such modality.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    waiting: dict[str, list[tuple[int, Any, dict[str, Tensor]]]] = {}
    for place, item in enumerate(_each(items)):
        try:
            name, sample = _sampled(item, processors, modality)
        except UnreadableFileError as error:
            yield UnreadableItem(place, item, error)
            continue
        waiting.setdefault(name, []).append((place, item, sample))
        if len(waiting[name]) == batch_size:
            yield _batch(name, processors[name], waiting.pop(name))
    for name in list(waiting):
        yield _batch(name, processors[name], waiting.pop(name))


def map_batches(
    compute: Callable[[SampleBatch], Iterable[Any]], batches: Iterable[SampleBatch | UnreadableItem], on_error: str
) -> list[Any]:
    """Computes something of each item.

    Args:
        compute: gives a result for each item of a batch.
        batches: see `sample_batches`.
        on_error: "raise", or "skip", which warns once about all unreadable items and gives None in their places.

    Returns:
        The results in the order of the items.

    Raises:
        UnreadableFileError: an item cannot be read and is not skipped; the message names it.
        ValueError: `on_error` is something else.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}; choose one of {', '.join(ON_ERROR)}")
    results: dict[int, Any] = {}
    reasons: list[str] = []
    num_skipped = 0
    for batch in batches:
        if not isinstance(batch, UnreadableItem):
            results |= zip(batch.places, compute(batch), strict=True)
        elif on_error == "raise":
            raise UnreadableFileError(str(batch)) from batch.error
        else:
            num_skipped += 1
            reasons += [str(batch)] if len(reasons) < _MOST_REASONS else []
    count = len(results) + num_skipped
    if num_skipped:
        more = f"; and {num_skipped - len(reasons)} more" if num_skipped > len(reasons) else ""
        message = f"{num_skipped} of {count} items could not be read: {'; '.join(reasons)}{more}"
        warnings.warn(message, stacklevel=3)  # where the model's method was called
    return [results.get(place) for place in range(count)]


def find_modality(item: Any, processors: Mapping[str, Processor]) -> str:
    """Returns who reads an item; where several may, the first who can.

    Raises:
        UnreadableFileError: nobody does.
    """
    content, suffix = _content(item)
    candidates = _candidates(content, suffix, processors, None)
    if len(candidates) == 1:
        return candidates[0][0]
    return _first_who_can(candidates, lambda name, suffix: _decoded(processors[name], content, suffix))[0]


def describe_item(item: Any) -> str:
    """Returns what an item is called in messages: its path or URL, or its type with what is known of its content."""
    if _has_name(item):
        return os.fspath(item)
    if isinstance(item, _BYTES):
        return f"{len(item)} bytes"
    kind = type(item)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    if isinstance(item, (np.ndarray, Tensor)):
        return f"{name} {str(item.dtype).removeprefix('torch.')} {list(item.shape)}"
    if isinstance(item, Mapping):
        return f"{name} with the keys {', '.join(map(repr, item))}"
    return name


def _has_name(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _each(items: Any) -> Iterator[Any]:
    """Yields the items, or the one item that is no collection."""
    is_one = isinstance(items, (str, os.PathLike, *_BYTES, Mapping, _FileObject, Tensor)) or (
        isinstance(items, np.ndarray) and items.dtype.kind not in "OUS"
    )
    yield from [items] if is_one or not isinstance(items, Iterable) else items


def _batch(modality: str, processor: Processor, rows: Sequence[tuple[int, Any, dict[str, Tensor]]]) -> SampleBatch:
    places, items, samples = zip(*rows, strict=True)
    return SampleBatch(modality, places, items, processor.collate(samples))


def _sampled(item: Any, processors: Mapping[str, Processor], modality: str | None) -> tuple[str, dict[str, Tensor]]:
    """Returns (who reads an item, its sample)."""
    content, suffix = _content(item)
    candidates = _candidates(content, suffix, processors, modality)
    name, raw = _first_who_can(candidates, lambda name, suffix: _decoded(processors[name], content, suffix))
    return name, sample_of(raw, processors[name], train=False)


def _decoded(processor: Processor, content: Any, suffix: str) -> Any:
    with refuse_broken():
        return processor.decode(content, suffix)


def _first_who_can(candidates: Sequence[tuple[str, str]], decode: Callable[[str, str], T]) -> tuple[str, T]:
    """Returns (modality, what it decoded) of the first of the candidates that can."""
    if len(candidates) == 1:
        return candidates[0][0], decode(*candidates[0])
    reasons = []
    for name, suffix in candidates:
        try:
            return name, decode(name, suffix)
        except UnreadableFileError as error:
            reasons.append(f"{name}: {error}")
    names = ", ".join(name for name, _ in candidates)
    raise UnreadableFileError(f"none of {names} can read it ({'; '.join(reasons)})")


def _content(item: Any) -> tuple[Any, str]:
    """Returns (a path, the bytes of a file or an object, the suffix of its name or "")."""
    if isinstance(item, str) and "://" in item:
        path = local_path(item)
        if path is None:
            with refuse_broken("it cannot be fetched"):
                return read_whole(item), PurePosixPath(_AFTER_A_NAME.split(item)[0]).suffix.lower()
        item = path if path.exists() else Path(unquote(str(path)))  # as `Path.as_uri` quotes it
    if isinstance(item, (str, os.PathLike)):
        return Path(item), Path(item).suffix.lower()
    if isinstance(item, _BYTES):
        return bytes(item), ""
    if isinstance(item, _FileObject):
        with refuse_broken("the file object cannot be read"):
            content = item.read()
        if not isinstance(content, bytes):
            raise UnreadableFileError(f"its read() gave {type(content).__name__}, expected bytes; open it with 'rb'")
        name = getattr(item, "name", "")  # of an open file; a descriptor's is a number
        return content, PurePosixPath(name).suffix.lower() if isinstance(name, str) else ""
    return item, ""


def _candidates(
    content: Any, suffix: str, processors: Mapping[str, Processor], modality: str | None
) -> list[tuple[str, str]]:
    """Returns (modality, suffix for its `decode`) of all who may read an item, at least one."""
    if modality is not None and modality not in processors:
        raise ValueError(f"there is no modality '{modality}'; this model has {', '.join(processors)}")
    chosen = processors if modality is None else {modality: processors[modality]}
    if not isinstance(content, (Path, bytes)):
        return [(name, "") for name in _takers(content, chosen, modality is not None)]
    fitting = [(name, suffix) for name, processor in chosen.items() if suffix in processor.suffixes]
    if fitting:
        return fitting
    head = _head(content)
    for name, processor in chosen.items():
        if isinstance(processor, ContentRecognizer) and (known := processor.suffix_of(head)):
            fitting.append((name, known))
    if fitting or modality is not None:
        return fitting or [(modality, suffix)]
    if not head:
        raise UnreadableFileError("it is empty (0 bytes)")
    readable = ", ".join(sorted({ending for processor in processors.values() for ending in processor.suffixes}))
    named = f"nothing here reads '{suffix}' files, and " if suffix else ""
    raise UnreadableFileError(
        f"{named}its first bytes, {head[:16]!r}, show no format that this model knows; it reads {readable}. Where the "
        "content does not show the format, give a path with its suffix, or the argument modality"
    )


def _takers(value: Any, processors: Mapping[str, Processor], is_chosen: bool) -> list[str]:
    """Returns the one who takes an object."""
    readers = {name: processor for name, processor in processors.items() if isinstance(processor, ObjectReader)}
    takers = [name for name, processor in readers.items() if is_chosen or processor.takes(value)]
    if len(takers) == 1:
        return takers
    if takers:
        raise UnreadableFileError(
            f"got {describe_item(value)}, which {' and '.join(takers)} take; choose one by the argument modality"
        )
    kinds = "".join(f"; {name}: {processor.objects}" for name, processor in readers.items())
    raise UnreadableFileError(
        f"got {describe_item(value)}; expected a path, a URL, the bytes of a file or a binary file object{kinds}"
    )


def _head(content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return content[:HEAD_BYTES]
    with refuse_broken("it cannot be read"), content.open("rb") as file:
        return file.read(HEAD_BYTES)
