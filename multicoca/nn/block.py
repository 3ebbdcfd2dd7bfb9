"""The transformer blocks: those of both halves of the text decoder, and one for encoders; pre-norm, one MLP.

With cross-attention the order is causal self-attention, cross-attention, MLP (CoCa, arXiv 2205.01917,
section 3.2). open_clip's blocks have one more MLP behind the self-attention and a norm of the context of their own.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.nn.attention import CrossAttention, SelfAttention
from multicoca.nn.cache import KeyValueCache
from multicoca.nn.linear import Linear
from multicoca.tokens import Tokens


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

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
        last_sees: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Applies the block; masks and cache are those of `SelfAttention`."""
        x = x + self.attention(self.norm_attention(x), self.causal, mask, cache, last_sees)
        return x + self.mlp(self.norm_mlp(x))


class MultimodalBlock(nn.Module):
    """Causal self-attention, cross-attention to the context and MLP.

    Args:
        width: size of the vectors, also of the context's.
        num_heads: attention heads.
        mlp_width: hidden size of the MLPs.
        double: one more MLP behind the self-attention, and a norm of the context (open_clip's form).
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, double: bool = False):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_text_mlp = nn.LayerNorm(width) if double else None
        self.text_mlp = MLP(width, mlp_width) if double else None
        self.norm_cross = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if double else nn.Identity()
        self.cross_attention = CrossAttention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width)

    def forward(
        self, x: Float[Tensor, "texts tokens width"], context: Tokens, cache: KeyValueCache | None = None
    ) -> Float[Tensor, "texts tokens width"]:
        """Applies the block to texts, as many in a row for each item of the context, which comes normalised.

        With a cache, `x` holds the tokens that are new, and the context is read the first time only. Queries do not
        see each other in cross-attention, so all texts of an item are queries of one attention.
        """
        memory = self._memory(context, cache)
        x = x + self.attention(self.norm_attention(x), causal=True, cache=cache)
        if self.text_mlp is not None:
            x = x + self.text_mlp(self.norm_text_mlp(x))
        queries = rearrange(self.norm_cross(x), "(items texts) new w -> items (texts new) w", items=len(memory[0]))
        seen = self.cross_attention.attend_to(queries, *memory, context.mask)
        x = x + rearrange(seen, "items (texts new) w -> (items texts) new w", new=x.shape[1])
        return x + self.mlp(self.norm_mlp(x))

    def _memory(self, context: Tokens, cache: KeyValueCache | None) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of the context, which all texts about it share."""
        if cache is not None and cache.memory is not None:
            return cache.memory
        keys, values = self.cross_attention.keys_values(self.norm_context(context.values))
        if cache is None:
            return keys, values
        cache.memory = keys.contiguous(), values.contiguous()
        return cache.memory
