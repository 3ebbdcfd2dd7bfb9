"""Multi-head attention: self-attention with a causal flag, cross-attention with a key mask.

Causality is a flag, never a dense mask: the text decoder arranges its tokens so that a flag is enough
(see `multicoca.model.text_decoder`). Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.nn.cache import KeyValueCache
from multicoca.nn.linear import Linear


def attend(
    q: Float[Tensor, "batch heads queries depth"],
    k: Float[Tensor, "batch heads keys depth"],
    v: Float[Tensor, "batch heads keys depth"],
    causal: bool = False,
    mask: Bool[Tensor, "batch 1 1 keys"] | None = None,
) -> Float[Tensor, "batch heads queries depth"]:
    """Scaled dot-product attention by PyTorch's fused kernel, except where its backward pass is slow.

    On a CPU in bf16 that pass takes five times as long as two matrix products and a softmax do
    (`benchmarks/attention_cpu.py`).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return attend_by_products(q, k, v, causal, mask)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """The same as `attend`, as written in the paper's equation 1."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ v


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        _check_heads(width, num_heads)
        self.num_heads = num_heads
        self.query_key_value = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        causal: bool,
        mask: Bool[Tensor, "batch tokens"] | None = None,
        cache: KeyValueCache | None = None,
        last_sees: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attends; with `causal`, no token sees a later one; where `mask` is False a token is not seen.

        With a cache, `x` holds the tokens that are new; they also see those of the cache, and join it. `last_sees`
        says what the last token sees, whom no other then does.
        """
        q, k, v = rearrange(self.query_key_value(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        if cache is not None:
            k, v = cache.append(k, v)
            causal = causal and q.shape[2] > 1  # a single new token is the last: it sees all
        visible = None if mask is None else mask[:, None, None, :]
        if last_sees is None:
            mixed = attend(q, k, v, causal=causal, mask=visible)
        else:
            first = attend(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], causal=causal, mask=visible)
            last = attend(q[:, :, -1:], k, v, mask=last_sees[:, None, None, :])
            mixed = torch.cat([first, last], dim=2)
        return self.out(rearrange(mixed, "b h t d -> b t (h d)"))


class CrossAttention(nn.Module):
    """Attention of queries to a context, which may have another width."""

    def __init__(self, width: int, num_heads: int, context_width: int | None = None):
        super().__init__()
        _check_heads(width, num_heads)
        self.num_heads = num_heads
        self.query = Linear(width, width)
        self.key_value = Linear(context_width or width, 2 * width)
        self.out = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys context_width"],
        context_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Attends to the context; where `context_mask` is False nothing is seen."""
        return self.attend_to(x, *self.keys_values(context), context_mask)

    def keys_values(
        self, context: Float[Tensor, "batch keys context_width"]
    ) -> tuple[Float[Tensor, "batch heads keys depth"], Float[Tensor, "batch heads keys depth"]]:
        """Returns what `attend_to` needs of a context, so that it is computed once."""
        k, v = rearrange(self.key_value(context), "b t (two h d) -> two b h t d", two=2, h=self.num_heads)
        return k, v

    def attend_to(
        self,
        x: Float[Tensor, "batch queries width"],
        k: Float[Tensor, "batch heads keys depth"],
        v: Float[Tensor, "batch heads keys depth"],
        context_mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Attends to the keys and values of a context."""
        q = rearrange(self.query(x), "b t (h d) -> b h t d", h=self.num_heads)
        visible = None if context_mask is None else context_mask[:, None, None, :]
        mixed = attend(q, k, v, mask=visible)
        return self.out(rearrange(mixed, "b h t d -> b t (h d)"))


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"width {width} cannot be split over {num_heads} heads; make it a multiple of num_heads")
