"""A model with all it needs to be used: processors, tokenizer and the network; what evaluation and the API run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multicoca.modality import FullPrecisionEncoder, Processor, finished
from multicoca.model.coca import CoCa
from multicoca.model.generate import DecodingConfig, Generated, generate
from multicoca.text.tokenizer import TextTokenizer
from multicoca.tokens import Tokens

_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Caption:
    """A caption that a model wrote.

    Attributes:
        text: the words.
        score: log-probability / (number of tokens)^length_penalty.
        log_probs: the model's log-probability of each token, end of text included where it was written.
        similarity: cosine between the embeddings of the caption and of the item; None unless it was asked for.
    """

    text: str
    score: float
    log_probs: tuple[float, ...]
    similarity: float | None = None


@dataclass(frozen=True)
class Bundle:
    """Network, tokenizer and processors by modality.

    Attributes:
        network: the CoCa model on its device.
        tokenizer: made for it.
        processors: who reads files, by modality.
    """

    network: CoCa
    tokenizer: TextTokenizer
    processors: Mapping[str, Processor]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's parameters."""
        return next(self.network.parameters()).dtype

    def placed(self, modality: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the encoder's inputs for collated ones, on the network's device and, if floating, in its type.

        See `Finisher` and `FullPrecisionEncoder`.
        """
        encoder = self.network.encoders[modality]
        exact = encoder.full_precision_inputs if isinstance(encoder, FullPrecisionEncoder) else ()
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        return {
            name: value.to(self.dtype) if value.is_floating_point() and name not in exact else value
            for name, value in finished(self.processors.get(modality), moved).items()
        }

    @torch.no_grad()
    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> tuple[Tokens, Float[Tensor, "batch embedding"]]:
        """Encodes collated inputs; returns (context for `write` and `score`, embeddings of length 1)."""
        return self.network.encode(modality, self.placed(modality, inputs))

    def write(
        self,
        modality: str,
        context: Tokens,
        embeddings: Float[Tensor, "items embedding"],
        decoding: DecodingConfig | None = None,
    ) -> list[tuple[Caption, ...]]:
        """Writes captions for what `encode` gave, best first; one for each item, greedily, by default."""
        decoding = decoding or DecodingConfig()
        tokenizer = self.tokenizer
        begin, end, banned = tokenizer.begin_id, tokenizer.end_id, tokenizer.never_written
        found = generate(self.network, modality, context, begin, end, decoding, banned)
        captions = self._captions(found)
        return self._reranked(captions, embeddings) if decoding.rerank else captions

    def _captions(self, found: Generated) -> list[tuple[Caption, ...]]:
        rows = []
        for ids, log_probs, scores in zip(found.ids[..., 1:], found.log_probs, found.scores, strict=True):
            lengths = ((ids != self.tokenizer.end_id).sum(dim=-1) + 1).clamp(max=ids.shape[-1]).tolist()
            fields = zip(self.tokenizer.decode(ids), scores.tolist(), log_probs.tolist(), lengths, strict=True)
            rows.append(tuple(Caption(text, score, tuple(each[:n])) for text, score, each, n in fields))
        return rows

    def _reranked(
        self, captions: list[tuple[Caption, ...]], embeddings: Float[Tensor, "items embedding"]
    ) -> list[tuple[Caption, ...]]:
        texts = self.embed_text([caption.text for own in captions for caption in own])
        texts = texts.unflatten(0, (len(captions), -1))
        similarities = (texts @ embeddings.float().cpu()[..., None])[..., 0]
        rows = []
        for own, values in zip(captions, similarities.tolist(), strict=True):
            scored = [Caption(c.text, c.score, c.log_probs, value) for c, value in zip(own, values, strict=True)]
            rows.append(tuple(sorted(scored, key=lambda caption: -caption.similarity)))
        return rows

    @torch.no_grad()
    def score(self, modality: str, context: Tokens, texts: Sequence[str]) -> Float[Tensor, "items texts"]:
        """Returns log P(text | item) of every text for every item, on the CPU."""
        parts = []
        at_once = max(1, _TEXTS_AT_ONCE // len(context.values))
        for start in range(0, len(texts), at_once):
            ids, lengths = self.tokenizer(texts[start : start + at_once])
            found = self.network.log_probs(modality, context, ids.to(self.device), lengths.to(self.device))
            parts.append(found.cpu())
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], batch_size: int = _TEXTS_AT_ONCE) -> Float[Tensor, "texts embedding"]:
        """Returns the embeddings of texts, length 1, fp32, on the CPU."""
        parts = [torch.empty(0, self.network.config.embedding_width)]
        for start in range(0, len(texts), batch_size):
            ids, lengths = self.tokenizer(texts[start : start + batch_size])
            parts.append(self.network.encode_text(ids.to(self.device), lengths.to(self.device)).float().cpu())
        return torch.cat(parts)
