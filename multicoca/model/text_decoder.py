"""The decoupled text decoder: a text-only half, then a half that cross-attends to the context.

CLS stands right behind the last real token of each text, before its padding. With causal attention it then
sees every real token and itself, nothing sees it, and no attention needs a mask: padding comes later than
everything that counts. The output is the same as with CLS appended at the end and a mask (CoCa, arXiv
2205.01917, section 3.2). CLS carries no position, so the length of the padding changes nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicoca.nn.block import MultimodalBlock, SelfAttentionBlock
from multicoca.nn.cache import DecodingState, KeyValueCache
from multicoca.tokens import Tokens


class TextDecoder(nn.Module):
    """Both halves, shared by all modalities.

    Args:
        vocab_size: number of token ids.
        context_length: the longest text, in tokens with BOS and EOS.
        width: size of the vectors.
        num_heads: attention heads.
        mlp_width: hidden size of the MLPs.
        unimodal_layers: layers of the text-only half.
        multimodal_layers: layers of the half that sees the context.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int,
        num_heads: int,
        mlp_width: int,
        unimodal_layers: int,
        multimodal_layers: int,
    ):
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(context_length, width))
        self.cls_embedding = nn.Parameter(torch.empty(width))
        self.unimodal_blocks = nn.ModuleList(
            SelfAttentionBlock(width, num_heads, mlp_width, causal=True) for _ in range(unimodal_layers)
        )
        self.norm_cls = nn.LayerNorm(width)
        self.multimodal_blocks = nn.ModuleList(
            MultimodalBlock(width, num_heads, mlp_width) for _ in range(multimodal_layers)
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
        batch, length = ids.shape
        texts = self.token_embedding(ids) + self.position_embedding[:length]
        slots = torch.arange(length + 1, device=ids.device)
        is_cls = (slots == lengths[:, None])[..., None]
        x = torch.where(is_cls, self.cls_embedding, torch.cat([texts, texts[:, -1:]], dim=1))
        for block in self.unimodal_blocks:
            x = block(x)
        cls = x[torch.arange(batch, device=ids.device), lengths]
        return x[:, :length], self.norm_cls(cls)

    def multimodal(
        self, texts: Float[Tensor, "batch length width"], context: Tokens
    ) -> Float[Tensor, "batch length width"]:
        """Runs the half that sees the context; the output at a token predicts the next one."""
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
            [block.cross_attention.keys_values(context.values) for block in self.multimodal_blocks],
            context.mask,
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
        for block, cache, memory in zip(self.multimodal_blocks, state.multimodal, state.memory, strict=True):
            x = block.extend(x, cache, memory, state.memory_mask)
        return self.norm_caption(x[:, -1])

    def _check_length(self, ids: Tensor) -> None:
        if ids.shape[1] > self.context_length:
            raise ValueError(
                f"a text has {ids.shape[1]} tokens but the model's context length is {self.context_length}; "
                "let the tokenizer truncate it or raise model.context_length"
            )
