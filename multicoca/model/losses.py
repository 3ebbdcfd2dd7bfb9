"""The contrastive losses, and the gradient convention of both losses of CoCa.

Every loss returns this rank's share of the global mean: a local sum divided by a global count. The engine sums
gradients over ranks, so one rank with a batch of 8 and four ranks with batches of 2 give the same gradients,
the temperature's included. The captioning loss is summed by the model (`Outputs.caption_loss`); its count is that of
the whole optimizer step, over all micro-batches and ranks. Source: CoCa (arXiv 2205.01917), equations 1 to 4.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multicoca.distributed.collectives import gather, rank
from multicoca.nn.contrastive import summed_contrastive, summed_sigmoid


def contrastive_loss(
    source: Float[Tensor, "batch embedding"],
    text: Float[Tensor, "batch embedding"],
    logit_scale: Float[Tensor, " 1"],
    reduction: str = "sum",
) -> Float[Tensor, ""]:
    """Cross-entropy of finding the text of each source and the source of each text, among all ranks' pairs.

    Args:
        source: embeddings of length 1 of this rank's sources.
        text: embeddings of length 1 of their texts.
        logit_scale: 1 / temperature.
        reduction: "sum" adds the two directions (the paper's convention), "mean" averages them (open_clip's).

    Returns:
        This rank's share of the global mean, fp32 or wider.

    Source: CoCa, equation 2.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"loss.contrastive_reduction is '{reduction}'; choose 'sum' or 'mean'")
    all_source, all_text = gather(source), gather(text)
    total = summed_contrastive(source, text, all_source, all_text, logit_scale, rank() * len(source)) / len(all_source)
    return total if reduction == "sum" else total / 2


def sigmoid_loss(
    source: Float[Tensor, "batch embedding"],
    text: Float[Tensor, "batch embedding"],
    logit_scale: Float[Tensor, " 1"],
    logit_bias: Float[Tensor, " 1"],
) -> Float[Tensor, ""]:
    """Cross-entropy of telling for each source and each text of all ranks whether they belong together.

    Args:
        source: embeddings of length 1 of this rank's sources.
        text: embeddings of length 1 of their texts.
        logit_scale: 1 / temperature.
        logit_bias: added to all logits.

    Returns:
        This rank's share of the global sum divided by the number of sources, fp32 or wider.

    Source: SigLIP (arXiv 2303.15343), section 3.2.
    """
    all_text = gather(text)
    return summed_sigmoid(source, all_text, logit_scale, logit_bias, rank() * len(source)) / len(all_text)
