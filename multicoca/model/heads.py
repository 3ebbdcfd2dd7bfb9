"""What each modality owns in the core: the adapter and its contrastive and caption heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multicoca.nn.init import MAX_LOGIT_SCALE
from multicoca.nn.precision import at_least_float32


class ModalityHeads(nn.Module):
    """Adapter to the core's width, source projection, temperature and caption head of one modality.

    Args:
        encoder_width: size of the encoder's tokens.
        width: size of the core's vectors.
        embedding_width: size of the contrastive space.
        caption_head: a linear layer from width to the vocabulary; the same object may serve several modalities.
    """

    def __init__(self, encoder_width: int, width: int, embedding_width: int, caption_head: nn.Linear):
        super().__init__()
        self.adapter = nn.Linear(encoder_width, width)
        self.source_projection = nn.Linear(width, embedding_width, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))  # shape [1]: sharding needs at least one dimension
        self.caption_head = caption_head

    def embed(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embedding"]:
        """Projects a pooled source into the contrastive space, with length 1, in fp32."""
        return F.normalize(at_least_float32(self.source_projection(pooled)), dim=-1)

    def logit_scale(self) -> Float[Tensor, " 1"]:
        """Returns 1 / temperature, at most 100, in fp32."""
        return at_least_float32(self.log_scale).exp().clamp(max=MAX_LOGIT_SCALE)
