"""What each modality owns in the core: the adapter and its contrastive and caption heads."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multicoca.model.config import ModelConfig
from multicoca.nn.init import MAX_LOGIT_SCALE
from multicoca.nn.precision import at_least_float32


class ModalityHeads(nn.Module):
    """Adapter to the width that the poolers read, source projection, temperature and caption head of one modality.

    Args:
        encoder_width: size of the encoder's tokens.
        config: the core's sizes.
        caption_head: a linear layer from width to the vocabulary; the same object may serve several modalities.
    """

    def __init__(self, encoder_width: int, config: ModelConfig, caption_head: nn.Linear):
        super().__init__()
        source_width = config.source_width or config.width
        fits = config.adapters == "where_needed" and encoder_width == source_width
        self.adapter = nn.Identity() if fits else nn.Linear(encoder_width, source_width)
        self.source_projection = nn.Linear(config.width, config.embedding_width, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))  # shape [1]: sharding needs at least one dimension
        self.logit_bias = nn.Parameter(torch.empty(1)) if config.contrastive == "sigmoid" else None
        self.caption_head = caption_head

    def embed(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embedding"]:
        """Projects a pooled source into the contrastive space, with length 1, in fp32."""
        return F.normalize(at_least_float32(self.source_projection(pooled)), dim=-1)

    def logit_scale(self) -> Float[Tensor, " 1"]:
        """Returns 1 / temperature, in fp32; at most 100 with softmax."""
        scale = at_least_float32(self.log_scale).exp()
        return scale.clamp(max=MAX_LOGIT_SCALE) if self.logit_bias is None else scale

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Takes a temperature that a step has led to its limit back a little, to where it has a gradient."""
        if self.logit_bias is None:
            self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE) - 1e-6)

    def bias(self) -> Float[Tensor, " 1"] | None:
        """Returns what the sigmoid loss adds to its logits, in fp32; None with softmax."""
        return None if self.logit_bias is None else at_least_float32(self.logit_bias).clone()
