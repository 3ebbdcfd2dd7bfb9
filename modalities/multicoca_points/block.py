"""A pre-norm transformer block with masked self-attention, as in ViT.

Source: Dosovitskiy et al. (arXiv 2010.11929), equations 2 and 3.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from multicoca.nn.attention import attend


class Block(nn.Module):
    """Self-attention, then an MLP, each on the normalised tokens and added to them.

    Args:
        width: size of the tokens.
        num_heads: attention heads; must divide the width.
        mlp_ratio: hidden size of the MLP in units of the width.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        hidden = int(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Returns new tokens. Those that `mask` marks False are attended by none."""
        batch, length, width = tokens.shape
        qkv = self.qkv(self.attention_norm(tokens)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, head width]
        keys = None if mask is None else mask[:, None, None, :]
        attended = attend(query, key, value, mask=keys)
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return tokens + self.down(F.gelu(self.up(self.mlp_norm(tokens))))

