"""Attentional poolers: from an encoder's tokens to the decoder's context and to one contrastive vector.

One set serves all modalities. The strategies share a signature, `Tokens -> (context, pooled)`, and are chosen
by name. Source: CoCa (arXiv 2205.01917), section 3.2: a pooler is a single multi-head attention layer with
learned queries, and the cascade (contrastive pooler on top of the generative one) is the paper's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multicoca.model.config import ModelConfig
from multicoca.nn.attention import CrossAttention
from multicoca.tokens import Tokens

Pooled = tuple[Tokens, Float[Tensor, "batch width"]]


class AttentionalPooler(nn.Module):
    """One attention layer with learned queries; masked tokens are not seen."""

    def __init__(self, width: int, num_heads: int, num_queries: int, source_width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.norm_queries = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(source_width)
        self.attention = CrossAttention(width, num_heads, source_width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch queries width"]:
        """Pools any number of tokens into `num_queries` normalised vectors."""
        queries = self.norm_queries(self.queries).expand(len(tokens.values), -1, -1)
        return self.norm_out(self.attention(queries, self.norm_tokens(tokens.values), tokens.mask))


class CascadePoolers(nn.Module):
    """The generative pooler reads the tokens, the contrastive pooler reads the generative one."""

    def __init__(self, width: int, num_heads: int, num_queries: int, source_width: int):
        super().__init__()
        self.generative = AttentionalPooler(width, num_heads, num_queries, source_width)
        self.contrastive = AttentionalPooler(width, num_heads, 1, width)

    def forward(self, tokens: Tokens) -> Pooled:
        """Returns the decoder's context and the contrastive vector."""
        context = Tokens(self.generative(tokens))
        return context, self.contrastive(context)[:, 0]


class ParallelPoolers(nn.Module):
    """Both poolers read the tokens."""

    def __init__(self, width: int, num_heads: int, num_queries: int, source_width: int):
        super().__init__()
        self.generative = AttentionalPooler(width, num_heads, num_queries, source_width)
        self.contrastive = AttentionalPooler(width, num_heads, 1, source_width)

    def forward(self, tokens: Tokens) -> Pooled:
        """Returns the decoder's context and the contrastive vector."""
        return Tokens(self.generative(tokens)), self.contrastive(tokens)[:, 0]


class SharedPooler(nn.Module):
    """One pooler: query 0 is the contrastive vector, the others the context (open_clip's form)."""

    def __init__(self, width: int, num_heads: int, num_queries: int, source_width: int):
        super().__init__()
        self.shared = AttentionalPooler(width, num_heads, num_queries, source_width)

    def forward(self, tokens: Tokens) -> Pooled:
        """Returns the decoder's context and the contrastive vector."""
        pooled = self.shared(tokens)
        return Tokens(pooled[:, 1:]), pooled[:, 0]


class NoGenerativePooler(nn.Module):
    """The decoder sees all tokens (CoCa, table 8f); only the contrastive vector is pooled."""

    def __init__(self, width: int, num_heads: int, num_queries: int, source_width: int):
        super().__init__()
        del num_queries  # the same signature for all strategies; here every token is kept
        self.norm_context = nn.LayerNorm(source_width)
        self.contrastive = AttentionalPooler(width, num_heads, 1, source_width)

    def forward(self, tokens: Tokens) -> Pooled:
        """Returns the decoder's context and the contrastive vector."""
        context = tokens.with_values(self.norm_context(tokens.values))
        return context, self.contrastive(tokens)[:, 0]


POOLERS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "cascade": CascadePoolers,
    "parallel": ParallelPoolers,
    "shared": SharedPooler,
    "none": NoGenerativePooler,
}


def build_poolers(config: ModelConfig) -> nn.Module:
    """Builds the poolers that a configuration names.

    Raises:
        ValueError: the strategy does not exist, or has too few queries.
    """
    if config.pooler not in POOLERS:
        raise ValueError(f"model.pooler is '{config.pooler}'; choose one of {', '.join(POOLERS)}")
    if config.num_queries < 2:
        raise ValueError(f"model.num_queries is {config.num_queries}; the decoder's context needs at least 2")
    heads, source_width = config.pooler_heads or config.num_heads, config.source_width or config.width
    return POOLERS[config.pooler](config.width, heads, config.num_queries, source_width)
