"""A model with all it needs to be used: processors, tokenizer and the network; what evaluation and the API run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multicoca.modality import Processor
from multicoca.model.coca import CoCa
from multicoca.model.generate import DecodingConfig, Generated, generate
from multicoca.text.tokenizer import TextTokenizer
from multicoca.tokens import Tokens


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

    @torch.no_grad()
    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> tuple[Tokens, Float[Tensor, "batch embedding"]]:
        """Encodes collated inputs; returns (context for `write`, embeddings of length 1)."""
        return self.network.encode(modality, {name: value.to(self.device) for name, value in inputs.items()})

    def generate(self, modality: str, context: Tokens, decoding: DecodingConfig | None = None) -> Generated:
        """Writes the token ids of captions; greedily by default."""
        tokenizer = self.tokenizer
        begin, end, banned = tokenizer.begin_id, tokenizer.end_id, tokenizer.never_written
        return generate(self.network, modality, context, begin, end, decoding, banned)

    def write(
        self, modality: str, context: Tokens, decoding: DecodingConfig | None = None
    ) -> list[list[tuple[str, float]]]:
        """Writes (caption, score) for each item, best first; one, greedily, by default."""
        found = self.generate(modality, context, decoding)
        return [
            list(zip(self.tokenizer.decode(ids[:, 1:]), scores.tolist(), strict=True))
            for ids, scores in zip(found.ids, found.scores, strict=True)
        ]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "texts embedding"]:
        """Returns the embeddings of texts, length 1, fp32, on the CPU."""
        parts = [torch.empty(0, self.network.config.embedding_width)]
        for start in range(0, len(texts), batch_size):
            ids, lengths = self.tokenizer(texts[start : start + batch_size])
            parts.append(self.network.encode_text(ids.to(self.device), lengths.to(self.device)).float().cpu())
        return torch.cat(parts)
