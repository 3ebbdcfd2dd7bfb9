"""The transformer blocks: those of both halves of the text decoder, and one for encoders; pre-norm, one MLP.

With cross-attention the order is causal self-attention, cross-attention, MLP (CoCa, arXiv 2205.01917,
section 3.2); open_clip's variant with a second MLP is not this block.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.nn.attention import CrossAttention, SelfAttention
from multicoca.nn.cache import KeyValueCache
from multicoca.tokens import Tokens


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Applies the MLP to each vector."""
        return self.down(F.gelu(self.up(x)))


class SelfAttentionBlock(nn.Module):
    """Self-attention and MLP: causal in the text-only half of the decoder, in both directions in encoders.

    Source: Dosovitskiy et al. (arXiv 2010.11929), equations 2 and 3.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Applies the block; tokens that `mask` marks False are attended by none; new tokens join the cache."""
        x = x + self.attention(self.norm_attention(x), self.causal, mask, cache)
        return x + self.mlp(self.norm_mlp(x))


class MultimodalBlock(nn.Module):
    """Causal self-attention, cross-attention to the context and MLP."""

    def __init__(self, width: int, num_heads: int, mlp_width: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width)

    def forward(self, x: Float[Tensor, "batch tokens width"], context: Tokens) -> Float[Tensor, "batch tokens width"]:
        """Applies the block; the context comes normalised from the pooler."""
        x = x + self.attention(self.norm_attention(x), causal=True)
        x = x + self.cross_attention(self.norm_cross(x), context.values, context.mask)
        return x + self.mlp(self.norm_mlp(x))

    def extend(
        self,
        x: Float[Tensor, "texts new width"],
        cache: KeyValueCache,
        memory: tuple[Tensor, Tensor],
        memory_mask: Bool[Tensor, "items keys"] | None,
    ) -> Float[Tensor, "texts new width"]:
        """Applies the block to the new tokens of texts, several in a row for each item of the memory.

        Queries do not see each other in cross-attention, so all texts of an item are queries of one attention.
        """
        x = x + self.attention(self.norm_attention(x), causal=True, cache=cache)
        queries = rearrange(self.norm_cross(x), "(items texts) new w -> items (texts new) w", items=len(memory[0]))
        seen = self.cross_attention.attend_to(queries, *memory, memory_mask)
        x = x + rearrange(seen, "items (texts new) w -> (items texts) new w", new=x.shape[1])
        return x + self.mlp(self.norm_mlp(x))
