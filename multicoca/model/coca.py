"""The CoCa model over any set of modalities: shared poolers and text decoder, encoders and heads by name.

Source: CoCa (arXiv 2205.01917), section 3.2; what is shared follows VideoCoCa (arXiv 2212.04979), which feeds
other tokens to the same poolers. The names of modalities are keys, never code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from multicoca.model.config import ModelConfig
from multicoca.model.heads import ModalityHeads
from multicoca.model.pooler import build_poolers
from multicoca.model.text_decoder import TextDecoder
from multicoca.nn.cache import DecodingState
from multicoca.nn.cross_entropy import NO_TARGET, summed_cross_entropy
from multicoca.nn.init import initialize
from multicoca.nn.linear import Linear
from multicoca.nn.precision import at_least_float32
from multicoca.tokens import Tokens

_SIZES_PER_OCTAVE = 16  # numbers of rows that the caption head is given, between one power of two and the next


@dataclass(frozen=True)
class Outputs:
    """What one batch gives to the losses.

    The first four are None without the contrastive loss, the last two without the captioning loss.

    Attributes:
        source: contrastive embeddings of the sources, length 1, fp32.
        text: contrastive embeddings of the texts, length 1, fp32.
        logit_scale: 1 / temperature of the modality.
        logit_bias: of the modality with the sigmoid loss, None with softmax.
        caption_loss: cross-entropy of the next tokens of all texts, summed, fp32; its mean is a division by the number
            of tokens that have a next one (equation 3 of the paper).
        right_tokens: how many next tokens have the largest logit.
    """

    source: Float[Tensor, "batch embedding"] | None = None
    text: Float[Tensor, "batch embedding"] | None = None
    logit_scale: Float[Tensor, " 1"] | None = None
    logit_bias: Float[Tensor, " 1"] | None = None
    caption_loss: Float[Tensor, ""] | None = None
    right_tokens: Int[Tensor, ""] | None = None


register_dataclass(Outputs)  # fully_shard of torch < 2.13 finds the tensors of an output by tree_flatten alone


class CoCa(nn.Module):
    """Encodes sources of several modalities and texts, and predicts captions.

    Where parameters lie in shards, each method of `forward_methods` gathers them, so that ranks call them together, and
    none of them calls another.

    Args:
        config: the core's sizes.
        encoders: an encoder for each modality, by name.
        vocab_size: number of token ids.
        generator: randomness of the initialisation; None takes torch's global one.

    Attributes:
        in_step: whether parameters lie in shards.
    """

    forward_methods = ("embed_pairs", "encode", "encode_text", "caption_logits", "log_probs", "next_token_logits")

    def __init__(
        self,
        config: ModelConfig,
        encoders: Mapping[str, nn.Module],
        vocab_size: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(encoders)
        self.poolers = build_poolers(config)
        self.text = TextDecoder(config, vocab_size)
        self.text_projection = nn.Linear(config.width, config.embedding_width, bias=False)
        shared_head = Linear(config.width, vocab_size, bias=False) if config.caption_heads == "shared" else None
        self.heads = nn.ModuleDict()
        for name, encoder in encoders.items():
            caption_head = shared_head or Linear(config.width, vocab_size, bias=False)
            self.heads[name] = ModalityHeads(encoder.width, config, caption_head)
        self._encoders_are_frozen = False
        self.in_step = False
        initialize(self, config.unimodal_layers + config.multimodal_layers, generator=generator)

    def freeze_encoders(self, frozen: bool) -> None:
        """Keeps the encoders from learning for a while, or lets them learn again; may change between steps."""
        self._encoders_are_frozen = frozen

    @property
    def blocks(self) -> list[nn.Module]:
        """The units for activation checkpointing, compilation and sharding: of encoders and of both text halves."""
        text = (*self.text.unimodal_blocks, *self.text.multimodal_blocks)
        own = [block for encoder in self.encoders.values() for block in encoder.blocks]
        return list(dict.fromkeys((*own, *text)))  # encoders may share theirs

    def encode(self, modality: str, inputs: dict[str, Tensor]) -> tuple[Tokens, Float[Tensor, "batch embedding"]]:
        """Encodes a batch of sources.

        Args:
            modality: a key of `encoders`.
            inputs: what that modality's processor collates.

        Returns:
            (the context for `log_probs` and decoding, the contrastive embedding of length 1).
        """
        return self._encode(modality, inputs)

    def _encode(self, modality: str, inputs: dict[str, Tensor]) -> tuple[Tokens, Float[Tensor, "batch embedding"]]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._encoders_are_frozen):
            tokens = self.encoders[modality](inputs)
        heads = self.heads[modality]
        context, pooled = self.poolers(tokens.with_values(heads.adapter(tokens.values)))
        return context, heads.embed(pooled)

    def embed_pairs(
        self,
        modality: str,
        inputs: dict[str, Tensor],
        ids: Int[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
    ) -> Outputs:
        """Returns what `forward` returns without captions, in passes that form no gradients.

        It draws random numbers as `forward` does, so that the same seed gives the same embeddings.
        """
        return self._embedded(modality, self._encode(modality, inputs)[1], self.text.unimodal(ids, lengths)[1])

    def encode_text(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embedding"]:
        """Returns the contrastive embeddings of texts, length 1, fp32."""
        return self._project_text(self.text.unimodal(ids, lengths)[1])

    def forward(
        self,
        modality: str,
        inputs: dict[str, Tensor],
        ids: Int[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
        contrastive: bool = True,
        captions: bool = True,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        predicted: tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]] | None = None,
    ) -> Outputs:
        """Encodes pairs of sources and texts and predicts each next token of the texts.

        Args:
            modality: a key of `encoders`.
            inputs: what that modality's processor collates.
            ids: token ids, padded with any valid id.
            lengths: number of real tokens of each text.
            contrastive: whether to return embeddings; DDP waits for a gradient by everything that is returned.
            captions: whether to predict next tokens.
            label_smoothing: of the captioning loss; see `summed_cross_entropy`.
            z_loss: of the captioning loss; see `summed_cross_entropy`.
            predicted: what `predicted_rows` gives; without it a GPU has to be waited for, which counts them.
        """
        context, source = self._encode(modality, inputs)
        texts, cls = self.text.unimodal(ids, lengths)
        outputs = self._embedded(modality, source, cls) if contrastive else Outputs()
        if not captions:
            return outputs
        hidden, targets = self._predictions(texts, context, predicted or predicted_rows(ids, lengths))
        head = self.heads[modality].caption_head.weight
        loss, right = summed_cross_entropy(hidden, head, targets, label_smoothing, z_loss)
        return replace(outputs, caption_loss=loss, right_tokens=right)

    def caption_logits(
        self,
        modality: str,
        inputs: dict[str, Tensor],
        ids: Int[Tensor, "batch length"],
        lengths: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "targets vocabulary"], Int[Tensor, " targets"]]:
        """Returns what `forward` never holds as a whole: the fp32 logits of each next token, and these tokens.

        All texts stand one after another, without padding.
        """
        context, _ = self._encode(modality, inputs)
        predicted = predicted_rows(ids, lengths)
        hidden, targets = self._predictions(self.text.unimodal(ids, lengths)[0], context, predicted)
        real = targets != NO_TARGET
        return at_least_float32(self.heads[modality].caption_head(hidden[real])), targets[real]

    def log_probs(
        self, modality: str, context: Tokens, ids: Int[Tensor, "texts length"], lengths: Int[Tensor, " texts"]
    ) -> Float[Tensor, "items texts"]:
        """Returns log P(text | item) of every text for every item, end of text included.

        The text-only half runs once for each text, and the context's keys and values once for each item.
        """
        items, (count, length) = len(context.values), ids.shape
        texts = self.text.unimodal(ids, lengths)[0]
        rows, targets = predicted_rows(ids.repeat(items, 1), lengths.repeat(items))
        hidden, targets = self._predictions(texts.repeat(items, 1, 1), context, (rows, targets))
        logits = at_least_float32(self.heads[modality].caption_head(hidden))
        losses = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="none")
        return -losses.new_zeros(items * count).index_add(0, rows // (length - 1), losses).unflatten(0, (items, count))

    def next_token_logits(
        self, modality: str, ids: Int[Tensor, "texts new"], state: DecodingState
    ) -> Float[Tensor, "texts vocabulary"]:
        """Adds tokens to the texts of a state that `text.begin` made; returns the fp32 logits of the next ones."""
        return at_least_float32(self.heads[modality].caption_head(self.text.extend(ids, state)))

    def _predictions(
        self, texts: Tensor, context: Tokens, predicted: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "rows width"], Int[Tensor, " rows"]]:
        """Returns what the caption head reads at the tokens that have a next one, and these; see `predicted_rows`."""
        rows, targets = predicted
        return self.text.multimodal(texts[:, :-1], context).flatten(0, 1)[rows], targets

    def _embedded(self, modality: str, source: Tensor, cls: Tensor) -> Outputs:
        heads = self.heads[modality]
        return Outputs(source, self._project_text(cls), heads.logit_scale(), heads.bias())

    def _project_text(self, cls: Tensor) -> Tensor:
        return F.normalize(at_least_float32(self.text_projection(cls)), dim=-1)


def predicted_rows(
    ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Finds the tokens that have a next one, so that the caption head runs on no padding.

    Their number is rounded up by a sixteenth at the most, with rows without a target: kernels are prepared anew for
    every shape, which costs time and memory.

    Returns:
        (indices into the flattened [batch, length - 1], the next token of each or NO_TARGET).
    """
    has_next = torch.arange(ids.shape[1] - 1, device=ids.device) < lengths[:, None] - 1
    rows = has_next.flatten().nonzero()[:, 0]
    fill = -len(rows) % max(1, 2 ** (len(rows).bit_length() - 1) // _SIZES_PER_OCTAVE)
    targets = ids[:, 1:].flatten()[rows]
    return F.pad(rows, (0, fill)), F.pad(targets, (0, fill), value=NO_TARGET)
