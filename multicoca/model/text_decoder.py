"""The decoupled text decoder: a text-only half, then a half that cross-attends to the context.

CLS stands right behind the last real token of each text, before its padding. With causal attention it then
sees every real token and itself, nothing sees it, and no attention needs a mask: padding comes later than
everything that counts. The output is the same as with CLS appended at the end and a mask (CoCa, arXiv
2205.01917, section 3.2). CLS carries no position, so the length of the padding changes nothing. open_clip's
weights were trained with another mask, which `ModelConfig.cls_mask` describes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicoca.model.config import ModelConfig
from multicoca.nn.block import MultimodalBlock, SelfAttentionBlock
from multicoca.nn.cache import DecodingState, KeyValueCache
from multicoca.tokens import Tokens

_OPEN_CLIP_PAD = 0  # the id that open_clip's CoCa pads with


class TextDecoder(nn.Module):
    """Both halves, shared by all modalities.

    Args:
        config: the core's sizes.
        vocab_size: number of token ids.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        width, sizes = config.width, (config.width, config.num_heads, config.mlp_width)
        self.context_length = config.context_length
        self.as_open_clip = config.cls_mask == "open_clip"
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length + self.as_open_clip, width))
        self.cls_embedding = nn.Parameter(torch.empty(width))
        self.unimodal_blocks = nn.ModuleList(
            SelfAttentionBlock(*sizes, causal=True) for _ in range(config.unimodal_layers)
        )
        self.norm_cls = nn.LayerNorm(width)
        self.multimodal_blocks = nn.ModuleList(
            MultimodalBlock(*sizes, double=config.multimodal_block == "open_clip")
            for _ in range(config.multimodal_layers)
        )
        self.norm_caption = nn.LayerNorm(width)

    def unimodal(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch width"]]:
        """Runs the text-only half.

        Args:
            ids: token ids, padded with any valid id.
            lengths: number of real tokens of each text, at least 1.

        Returns:
            (the tokens for the multimodal half; what stands in padding is meaningless, the normalised CLS).
        """
        self._check_length(ids)
        join = self._join_cls_as_open_clip if self.as_open_clip else self._join_cls
        x, cls_slots, cls_sees = join(ids, lengths)
        for block in self.unimodal_blocks:
            x = block(x, last_sees=cls_sees)
        cls = x[torch.arange(len(ids), device=ids.device), cls_slots]
        return x[:, : ids.shape[1]], self.norm_cls(cls)

    def _join_cls(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        """Puts CLS behind the last real token of each text, where causality alone lets it see the right ones."""
        length = ids.shape[1]
        texts = self.token_embedding(ids) + self.position_embedding[:length]
        is_cls = (torch.arange(length + 1, device=ids.device) == lengths[:, None])[..., None]
        return torch.where(is_cls, self.cls_embedding, torch.cat([texts, texts[:, -1:]], dim=1)), lengths, None

    def _join_cls_as_open_clip(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Puts CLS at the end; of n real tokens it sees slots 0 to n, the last of which is padding or CLS itself.

        open_clip 3.3.0 tells padding by its id and so takes a real token of id 0 for padding too; here lengths tell.
        """
        if ids.shape[1] < self.context_length:
            ids = F.pad(ids, (0, 1))  # the slot of padding that CLS sees
        length = ids.shape[1]
        slots = torch.arange(length + 1, device=ids.device)
        ids = torch.where(slots[:-1] < lengths[:, None], ids, _OPEN_CLIP_PAD)
        texts = self.token_embedding(ids) + self.position_embedding[:length]
        cls = (self.cls_embedding + self.position_embedding[-1]).expand(len(ids), 1, -1)
        sees = slots <= lengths[:, None]
        return torch.cat([texts, cls], dim=1), torch.full_like(lengths, length), sees

    def multimodal(
        self, texts: Float[Tensor, "texts length width"], context: Tokens
    ) -> Float[Tensor, "texts length width"]:
        """Runs the half that sees the context; the output at a token predicts the next one.

        There may be several texts for each item of the context, the same number for all, item by item.
        """
        for block in self.multimodal_blocks:
            texts = block(texts, context)
        return self.norm_caption(texts)

    def begin(self, context: Tokens, max_length: int) -> DecodingState:
        """Prepares to write texts of up to `max_length` tokens about each item of the context."""
        if max_length > self.context_length:
            raise ValueError(f"max_length is {max_length}, more than the model's context length, {self.context_length}")
        return DecodingState(
            [KeyValueCache(max_length) for _ in self.unimodal_blocks],
            [KeyValueCache(max_length) for _ in self.multimodal_blocks],
            context,
        )

    def extend(self, ids: Int[Tensor, "texts new"], state: DecodingState) -> Float[Tensor, "texts width"]:
        """Adds tokens to the texts of a state, without CLS; returns the output that predicts the next one.

        Args:
            ids: the new tokens of each text, the same number of texts for each item of the context, item by item.
            state: of all texts; it is changed.
        """
        first, last = state.length, state.length + ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding[first:last]
        for block, cache in zip(self.unimodal_blocks, state.unimodal, strict=True):
            x = block(x, cache=cache)
        for block, cache in zip(self.multimodal_blocks, state.multimodal, strict=True):
            x = block(x, state.context, cache)
        return self.norm_caption(x[:, -1])

    def _check_length(self, ids: Tensor) -> None:
        if ids.shape[1] > self.context_length:
            raise ValueError(
                f"a text has {ids.shape[1]} tokens but the model's context length is {self.context_length}; "
                "let the tokenizer truncate it or raise model.context_length"
            )
