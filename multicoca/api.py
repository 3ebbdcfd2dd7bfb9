"""The Python API: `multicoca.load(folder)` gives a model that embeds and captions files and objects in memory.

A model folder holds `model.safetensors`, `config.yaml`, `tokenizer.json` and `README.md`; nothing in it is
executed, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicoca.data.sample import Problem
from multicoca.inputs import (
    SampleBatch,
    Transform,
    UnreadableItem,
    find_modality,
    map_batches,
    sample_batches,
)
from multicoca.modality import Processor, finished
from multicoca.model.bundle import Bundle, Caption
from multicoca.model.generate import DecodingConfig, decoding_config
from multicoca.model.spec import ModelSpec
from multicoca.nn.precision import DTYPES, find_dtype
from multicoca.runs.model_folder import load_bundle, local_folder


@dataclass(frozen=True)
class Description:
    """What a model says about an item.

    Attributes:
        modality: who read the item.
        embedding: contrastive, length 1, fp32, on the CPU.
        captions: best first.
    """

    modality: str
    embedding: Float[Tensor, " embedding"]
    captions: tuple[Caption, ...]


class MultiCoCa:
    """A trained model for items of its modalities.

    Its methods take one item or any iterable of them, kinds mixed. An item is a path; a URL that fsspec knows; the
    content of a file; a binary file object; or an object that a modality takes, such as a PIL picture, an array or a
    tensor. A generator is consumed as it is encoded.

    Arguments of several methods:
        files: an item, or an iterable of items. A list is several items, an array or a tensor is one.
        batch_size: items of a modality that are encoded together.
        modality: who reads the items; by default a file's suffix says so, else its first bytes, or the object's type.
        on_error: "raise" stops at the first item that cannot be read; "skip" warns once, with the first reasons, and
            leaves a gap in the result: None, or a row of NaN.
        decoding: how captions are written; greedily, one for each item, by default.
        settings: fields of `DecodingConfig` instead of `decoding`, for example strategy="beam", num_beams=5.

    Args:
        bundle: network, tokenizer and processors.
        config: what it is made of.
        origin: where it was loaded from.
    """

    def __init__(self, bundle: Bundle, config: ModelSpec, origin: str = ""):
        self.bundle, self.config, self.origin = bundle, config, origin

    def __repr__(self) -> str:
        encoders = self.bundle.network.encoders
        lines = [f"{name}: {type(e).__name__}, {_count(e):,} parameters" for name, e in encoders.items()]
        lines += [
            f"{_count(self.bundle.network):,} parameters in all, {self.dtype}, on {self.device}",
            f"embeddings of width {self.bundle.network.config.embedding_width}",
        ]
        lines += [f"loaded from {self.origin}"] if self.origin else []
        return "\n  ".join(["MultiCoCa(", *lines]) + "\n)"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of what it reads."""
        return tuple(self.bundle.processors)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.bundle.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its parameters."""
        return self.bundle.dtype

    def to(self, *targets: str | torch.device | torch.dtype) -> MultiCoCa:
        """Moves the model to a device, to a dtype (also "bf16", "fp16" or "fp32"), or both, and returns it."""
        for target in targets:
            is_dtype = isinstance(target, torch.dtype) or target in DTYPES
            self.bundle.network.to(**{"dtype": find_dtype(target)} if is_dtype else {"device": target})
        return self

    def modality_of(self, file: Any) -> str:
        """Returns who reads an item; where several may, the first who can.

        Raises:
            UnreadableFileError: nobody does.
        """
        return find_modality(file, self.bundle.processors)

    def embed(
        self, files: Any, batch_size: int = 16, *, modality: str | None = None, on_error: str = "raise"
    ) -> Float[Tensor, "files embedding"]:
        """Returns the items' contrastive embeddings, length 1, fp32, on the CPU, in the order of the items.

        Raises:
            UnreadableFileError: an item cannot be read; the message names it.
        """

        def embedded(batch: SampleBatch) -> Iterable[Tensor]:
            return self.bundle.encode(batch.modality, batch.inputs)[1].float().cpu()

        rows = map_batches(embedded, self._batches(files, batch_size, modality), on_error)
        return _stacked(rows, self.bundle.network.config.embedding_width)

    def embed_text(self, texts: str | Iterable[str]) -> Float[Tensor, "texts embedding"]:
        """Returns the texts' contrastive embeddings, length 1, fp32, on the CPU."""
        return self.bundle.embed_text([texts] if isinstance(texts, str) else list(texts))

    def caption(
        self,
        files: Any,
        batch_size: int = 16,
        decoding: DecodingConfig | None = None,
        *,
        modality: str | None = None,
        on_error: str = "raise",
        **settings: Any,
    ) -> list[str | None]:
        """Writes the best caption for each item; None only for what was skipped.

        Raises:
            UnreadableFileError: an item cannot be read; the message names it.
            ValueError: a setting of decoding is unknown or wrong, or comes beside `decoding`.
        """
        found = self.describe(files, batch_size, decoding, modality=modality, on_error=on_error, **settings)
        return [None if each is None else each.captions[0].text for each in found]

    def describe(
        self,
        files: Any,
        batch_size: int = 16,
        decoding: DecodingConfig | None = None,
        *,
        modality: str | None = None,
        on_error: str = "raise",
        **settings: Any,
    ) -> list[Description | None]:
        """Gives captions, their scores and the embedding of each item in one pass; None only for what was skipped.

        Raises:
            UnreadableFileError: an item cannot be read; the message names it.
            ValueError: a setting of decoding is unknown or wrong, or comes beside `decoding`.
        """
        decoding = decoding_config(decoding, settings)

        def described(batch: SampleBatch) -> Iterable[Description]:
            context, embeddings = self.bundle.encode(batch.modality, batch.inputs)
            captions = self.bundle.write(batch.modality, context, embeddings, decoding)
            rows = zip(embeddings.float().cpu(), captions, strict=True)
            return [Description(batch.modality, embedding, written) for embedding, written in rows]

        return map_batches(described, self._batches(files, batch_size, modality), on_error)

    def score(
        self,
        files: Any,
        captions: Iterable[str],
        batch_size: int = 16,
        *,
        modality: str | None = None,
        on_error: str = "raise",
    ) -> Float[Tensor, "files captions"]:
        """Returns log P(caption | item) of every caption for every item, each item encoded once.

        Raises:
            UnreadableFileError: an item cannot be read; the message names it.
            ValueError: there is no caption.
        """
        texts = [] if isinstance(captions, str) else list(captions)
        if not texts:
            raise ValueError(f"captions is {captions!r}; expected a list of at least one text")

        def scored(batch: SampleBatch) -> Iterable[Tensor]:
            context, _ = self.bundle.encode(batch.modality, batch.inputs)
            return self.bundle.score(batch.modality, context, texts)

        return _stacked(map_batches(scored, self._batches(files, batch_size, modality), on_error), len(texts))

    def stream(
        self, files: Any, batch_size: int = 16, *, modality: str | None = None
    ) -> Iterator[tuple[Any, Tensor | Problem]]:
        """Yields (item, its embedding or why it has none) as batches are full, so not in the order of the items."""
        for batch in self._batches(files, batch_size, modality):
            if isinstance(batch, UnreadableItem):
                yield batch.item, Problem(batch.name, batch.name, str(batch.error))
            else:
                embeddings = self.bundle.encode(batch.modality, batch.inputs)[1].float().cpu()
                yield from zip(batch.items, embeddings, strict=True)

    def transform(self, modality: str) -> Transform:
        """Returns what turns an item into a sample. It can be pickled and runs without the model, in data workers."""
        return Transform(modality, self._processor(modality))

    def collate(self, modality: str, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Joins samples into the inputs of `encode`."""
        processor = self._processor(modality)
        return finished(processor, processor.collate(samples))

    def tokenize(self, texts: str | Iterable[str]) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        """Returns (token ids, padded; the number of real tokens of each text)."""
        return self.bundle.tokenizer([texts] if isinstance(texts, str) else list(texts))

    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch embedding"]:
        """Returns the embeddings of collated inputs, length 1, on the model's device, with gradients."""
        self._processor(modality)
        return self.bundle.network.encode(modality, self.bundle.placed(modality, inputs))[1]

    def encode_text(
        self, ids: Int[Tensor, "texts length"], lengths: Int[Tensor, " texts"]
    ) -> Float[Tensor, "texts embedding"]:
        """Returns the embeddings of tokenized texts, length 1, on the model's device, with gradients."""
        return self.bundle.network.encode_text(ids.to(self.device), lengths.to(self.device))

    def _processor(self, modality: str) -> Processor:
        if modality not in self.bundle.processors:
            raise ValueError(f"there is no modality '{modality}'; this model has {', '.join(self.modalities)}")
        return self.bundle.processors[modality]

    def _batches(self, files: Any, batch_size: int, modality: str | None) -> Iterator[SampleBatch | UnreadableItem]:
        return sample_batches(files, self.bundle.processors, batch_size, modality)


def load(
    folder: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> MultiCoCa:
    """Loads a model folder, or one of the hub by its id.

    Args:
        folder: a local folder, or `owner/name` of the Hugging Face hub.
        device: where it runs; a GPU if there is one, by default.
        dtype: of its parameters: "bf16", "fp16", "fp32" or torch's; that of the folder by default.
        revision: branch, tag or commit on the hub.
        token: for private models of the hub; by default the one that is logged in.

    Raises:
        ValueError: there is no such model, or its files do not fit together.
    """
    kind = None if dtype is None else find_dtype(dtype)
    bundle, spec = load_bundle(local_folder(folder, revision, token))
    bundle.network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), kind)
    return MultiCoCa(bundle, spec, str(folder) + (f"@{revision}" if revision else ""))


def _stacked(rows: Sequence[Tensor | None], width: int) -> Float[Tensor, "rows {width}"]:
    """Joins rows, with NaN for those that are None."""
    missing = torch.full((width,), torch.nan)
    return torch.stack([missing if row is None else row for row in rows]) if rows else torch.empty(0, width)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
