"""Zero-shot classification: a class is described by sentences, the nearest class in text space is the answer.

The decision worth knowing: ties are shared as in retrieval, so that a collapsed model scores one in the number
of classes, also where two classes have the same name.

Source: CLIP (arXiv 2103.00020), section 3.1.4: embeddings of a class's sentences are normalised, averaged and
normalised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from multicoca.eval.prompts import sentences
from multicoca.eval.retrieval import expected_recall


def class_embeddings(
    embed_text: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes width"]:
    """Describes each class by the mean embedding of its sentences.

    Args:
        embed_text: gives embeddings [sentences, width] for sentences; called once per class.
        names: the class names, in the order of the labels.
        templates: sentences with {} where the name goes, see `multicoca.eval.prompts`.

    Returns:
        Unit vectors in fp32.

    Raises:
        ValueError: there is no class or no template.
    """
    if not names or not templates:
        raise ValueError(f"got {len(names)} class names and {len(templates)} templates; both must be at least 1")
    means = []
    for name in names:
        embedded = functional.normalize(embed_text(sentences(name, templates)).detach().float(), dim=-1)
        means.append(embedded.mean(dim=0))
    return functional.normalize(torch.stack(means), dim=-1)


def zero_shot_accuracy(
    source: Float[Tensor, "sources width"],
    classes: Float[Tensor, "classes width"],
    labels: Int[Tensor, " sources"],
) -> dict[str, float | int]:
    """Computes how often the right class is the nearest, or among the nearest five.

    Args:
        source: embeddings to classify; normalised here, in fp32.
        classes: one embedding per class.
        labels: the right class of each source.

    Returns:
        "top1" and "top5" over the sources and "per_class_mean" (top 1 averaged over the classes that occur), as
        shares of 1; "used", the number of sources; "chance", one in the number of classes.

    Raises:
        ValueError: there is no source, a label is not a class, or an embedding is not a number.
    """
    with torch.autocast(source.device.type, enabled=False):
        source = functional.normalize(source.detach().float(), dim=-1)
        similarity = source @ functional.normalize(classes.detach().float().to(source.device), dim=-1).T
    return classification_accuracy(similarity, labels)


def likelihood_scores(
    score: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "sources classes"]:
    """Scores each class by how likely the decoder finds its sentences: log of the sum of P(sentence | source).

    Args:
        score: gives log P(sentence | source) as [sources, sentences]; called once.
        names: the class names, in the order of the labels.
        templates: sentences with {} where the name goes, as likely as each other before the source is seen.

    Source: CapPa (arXiv 2306.07915), which has one sentence for each class.
    """
    texts = [text for name in names for text in sentences(name, templates)]
    return score(texts).unflatten(1, (len(names), len(templates))).logsumexp(dim=-1)


def classification_accuracy(
    scores: Float[Tensor, "sources classes"], labels: Int[Tensor, " sources"]
) -> dict[str, float | int]:
    """Computes how often the right class scores highest; returns and raises as `zero_shot_accuracy`."""
    num_classes = scores.shape[1]
    if len(scores) == 0:
        raise ValueError("there is no source to classify")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"the labels reach from {int(labels.min())} to {int(labels.max())}; "
            f"they must be 0 to {num_classes - 1}, one of the {num_classes} classes"
        )
    labels = labels.cpu().long()
    positives = functional.one_hot(labels, num_classes).bool().to(scores.device)
    first = expected_recall(scores, positives, 1)
    occurring = [first[labels == label].mean() for label in labels.unique()]
    return {
        "top1": float(first.mean()),
        "top5": float(expected_recall(scores, positives, 5).mean()),
        "per_class_mean": float(torch.stack(occurring).mean()),
        "used": len(scores),
        "chance": 1 / num_classes,
    }
