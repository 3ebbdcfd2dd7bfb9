"""Writing captions. Greedy decoding, a token at a time, each item until its end-of-text token."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from multicoca.model.coca import CoCa
from multicoca.tokens import Tokens


@torch.no_grad()
def generate_greedy(
    model: CoCa, modality: str, context: Tokens, begin_id: int, end_id: int, max_length: int | None = None
) -> Int[Tensor, "batch length"]:
    """Writes the likeliest next token until every item has ended.

    Args:
        model: the model, in evaluation mode.
        modality: whose caption head writes.
        context: what `model.encode` gave.
        begin_id: the token that starts a text.
        end_id: the token that ends it; an item that has ended repeats it.
        max_length: tokens at the most, with both of these; the model's context length by default.

    Returns:
        Token ids that start with `begin_id`.
    """
    batch = len(context.values)
    ids = torch.full((batch, 1), begin_id, dtype=torch.long, device=context.values.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    for _ in range((max_length or model.config.context_length) - 1):
        chosen = model.next_token_logits(modality, ids, context).argmax(dim=-1)
        chosen = chosen.masked_fill(ended, end_id)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        ended |= chosen == end_id
        if ended.all():
            break
    return ids
