"""The Python API: `multicoca.load(folder)` gives a model that embeds and captions files.

A model folder holds `model.safetensors`, `config.yaml`, `tokenizer.json` and `README.md`; nothing in it is
executed, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from multicoca.data.sample import Problem, sample_of
from multicoca.modality import UnreadableFileError
from multicoca.model.bundle import Bundle, Caption
from multicoca.model.generate import DecodingConfig
from multicoca.model.spec import ModelSpec
from multicoca.reading import refuse_broken
from multicoca.runs.model_folder import load_bundle, local_folder


@dataclass(frozen=True)
class Description:
    """What a model says about a file.

    Attributes:
        modality: who read it.
        embedding: contrastive, length 1, fp32, on the CPU.
        captions: best first.
    """

    modality: str
    embedding: Float[Tensor, " embedding"]
    captions: tuple[Caption, ...]


class MultiCoCa:
    """A trained model for files of its modalities.

    Args:
        bundle: network, tokenizer and processors.
        config: what it is made of.
    """

    def __init__(self, bundle: Bundle, config: ModelSpec):
        self.bundle, self.config = bundle, config

    def modality_of(self, file: str | Path) -> str:
        """Returns who reads a file, by its suffix; where several read such files, the first who can.

        Raises:
            UnreadableFileError: nobody does.
        """
        suffix = Path(file).suffix.lower()
        fitting = [name for name, processor in self.bundle.processors.items() if suffix in processor.suffixes]
        reasons = []
        for modality in fitting:
            if len(fitting) == 1:
                return modality
            try:
                with refuse_broken():
                    self.bundle.processors[modality].decode(Path(file))
                return modality
            except UnreadableFileError as error:
                reasons.append(f"{modality}: {error}")
        if reasons:
            raise UnreadableFileError(f"none of {', '.join(fitting)} can read it ({'; '.join(reasons)})")
        readable = ", ".join(sorted({s for processor in self.bundle.processors.values() for s in processor.suffixes}))
        raise UnreadableFileError(f"nothing here reads '{suffix}' files; this model reads {readable}")

    def embed(self, files: Sequence[str | Path], batch_size: int = 16) -> Float[Tensor, "files embedding"]:
        """Returns the files' contrastive embeddings, length 1, on the CPU, in the order of the files.

        Raises:
            UnreadableFileError: a file cannot be read; the message names it.
        """
        rows: dict[int, Tensor] = {}
        for indices, modality, inputs in self._batches(files, batch_size):
            rows |= dict(zip(indices, self.bundle.encode(modality, inputs)[1].cpu(), strict=True))
        width = self.bundle.network.config.embedding_width
        return torch.stack([rows[i] for i in range(len(rows))]) if rows else torch.empty(0, width)

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "texts embedding"]:
        """Returns the texts' contrastive embeddings, length 1, on the CPU."""
        return self.bundle.embed_text([texts] if isinstance(texts, str) else texts)

    def caption(
        self, files: Sequence[str | Path], batch_size: int = 16, decoding: DecodingConfig | None = None
    ) -> list[str]:
        """Writes the best caption for each file; greedily, or as `decoding` says.

        Raises:
            UnreadableFileError: a file cannot be read; the message names it.
        """
        return [found.captions[0].text for found in self.describe(files, batch_size, decoding)]

    def describe(
        self, files: Sequence[str | Path], batch_size: int = 16, decoding: DecodingConfig | None = None
    ) -> list[Description]:
        """Gives captions, their scores and the embedding of each file in one pass.

        Args:
            files: of any modality of the model.
            batch_size: files encoded together.
            decoding: how many captions and how they are written; one, greedily, by default.

        Raises:
            UnreadableFileError: a file cannot be read; the message names it.
        """
        found: dict[int, Description] = {}
        for indices, modality, inputs in self._batches(files, batch_size):
            context, embeddings = self.bundle.encode(modality, inputs)
            captions = self.bundle.write(modality, context, embeddings, decoding)
            rows = zip(indices, embeddings.float().cpu(), captions, strict=True)
            found |= {index: Description(modality, embedding, own) for index, embedding, own in rows}
        return [found[i] for i in range(len(found))]

    def score(
        self, files: Sequence[str | Path], captions: Sequence[str], batch_size: int = 16
    ) -> Float[Tensor, "files captions"]:
        """Returns log P(caption | file) of every caption for every file, each file encoded once.

        Raises:
            UnreadableFileError: a file cannot be read; the message names it.
            ValueError: there is no caption.
        """
        if isinstance(captions, str) or not captions:
            raise ValueError(f"captions is {captions!r}; expected a list of at least one text")
        rows: dict[int, Tensor] = {}
        for indices, modality, inputs in self._batches(files, batch_size):
            context, _ = self.bundle.encode(modality, inputs)
            rows |= dict(zip(indices, self.bundle.score(modality, context, captions), strict=True))
        return torch.stack([rows[i] for i in range(len(rows))]) if rows else torch.empty(0, len(captions))

    def stream(self, files: Iterable[Path], batch_size: int = 16) -> Iterator[tuple[Path, Tensor | Problem]]:
        """Yields (file, its embedding or why it has none); holds no more than a batch of each modality."""
        waiting: dict[str, list[tuple[Path, dict[str, Tensor]]]] = {}
        for file in files:
            try:
                modality = self.modality_of(file)
                sample = self._read(file, modality)
            except UnreadableFileError as error:
                yield file, Problem(str(file), str(file), str(error))
                continue
            waiting.setdefault(modality, []).append((file, sample))
            if len(waiting[modality]) == batch_size:
                yield from self._embedded(modality, waiting.pop(modality))
        for modality, rows in waiting.items():
            yield from self._embedded(modality, rows)

    def _embedded(self, modality: str, rows: list[tuple[Path, dict[str, Tensor]]]) -> Iterator[tuple[Path, Tensor]]:
        inputs = self.bundle.processors[modality].collate([sample for _, sample in rows])
        yield from zip((file for file, _ in rows), self.bundle.encode(modality, inputs)[1].cpu(), strict=True)

    def _batches(
        self, files: Sequence[str | Path], batch_size: int
    ) -> Iterator[tuple[list[int], str, dict[str, Tensor]]]:
        """Yields (positions in `files`, modality, inputs), modality by modality."""
        if isinstance(files, (str, Path)):
            files = [files]
        positions: dict[str, list[int]] = {}
        for index, file in enumerate(files):
            try:
                positions.setdefault(self.modality_of(file), []).append(index)
            except UnreadableFileError as error:
                raise UnreadableFileError(f"{file}: {error}") from error
        for modality, own in positions.items():
            for start in range(0, len(own), batch_size):
                indices = own[start : start + batch_size]
                samples = [self._read(Path(files[index]), modality) for index in indices]
                yield indices, modality, self.bundle.processors[modality].collate(samples)

    def _read(self, file: Path, modality: str) -> dict[str, Tensor]:
        processor = self.bundle.processors[modality]
        try:
            with refuse_broken():
                raw = processor.decode(file)
            return sample_of(raw, processor, False)
        except UnreadableFileError as error:
            raise UnreadableFileError(f"{file}: {error}") from error


def load(folder: str | Path, device: str | torch.device | None = None) -> MultiCoCa:
    """Loads a model folder, or one of the hub by its id.

    Args:
        folder: a local folder, or `owner/name` of the Hugging Face hub.
        device: where it runs; a GPU if there is one, by default.

    Raises:
        ValueError: there is no such model, or its files do not fit together.
    """
    bundle, spec = load_bundle(local_folder(folder))
    bundle.network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return MultiCoCa(bundle, spec)
