"""Evaluation of a model on listed items: retrieval, captioning, zero-shot classification, across modalities.

Nothing is ever replaced: an item that cannot be read is named and left out, and every result says how many of
how many listed items it used. Items without captions count for classification alone. Captions are written before any
reference is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from multicoca.data.loader import evaluation_batches
from multicoca.data.sample import Item, Problem
from multicoca.eval.captioning import caption_metrics
from multicoca.eval.prompts import check_templates, templates_for
from multicoca.eval.retrieval import across_retrieval, averaged_retrieval
from multicoca.eval.zero_shot import (
    class_embeddings,
    classification_accuracy,
    likelihood_scores,
    zero_shot_accuracy,
)
from multicoca.model.bundle import Bundle
from multicoca.terminal import progress
from multicoca.tokens import Tokens

Judge = Callable[[Item, str], tuple[bool, int, int]]  # (exactly right, facts right, facts in all)


@dataclass(frozen=True)
class EvaluationConfig:
    """Protocols.

    Attributes:
        gallery: items of a retrieval gallery, no two with a caption in common.
        draws: galleries to average over.
        captions_per_item: captions of each item that retrieval uses; None for all.
        templates: of zero-shot classification by `label`, see `multicoca.eval.prompts`: a name for all modalities, or
            by modality a name or sentences.
        likelihood: classify by `label` also by how likely the decoder finds each class's sentences; it reads every
            sentence once for each item.
        meteor: also score METEOR where Java is installed; its program takes some seconds for each modality.
        batch_size: items read and encoded together.
        probe_items: items of each modality in the short evaluations during training.
    """

    gallery: int = 256
    draws: int = 20
    captions_per_item: int | None = None
    templates: Any = field(default_factory=dict)
    likelihood: bool = False
    meteor: bool = True
    batch_size: int = 64
    probe_items: int = 64

    def __post_init__(self) -> None:
        numbers = {"gallery": self.gallery, "draws": self.draws, "batch_size": self.batch_size}
        numbers |= {"probe_items": self.probe_items, "captions_per_item": self.captions_per_item or 1}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"evaluation.{name} is {number}; expected at least 1")
        check_templates(self.templates)  # an unknown name is an error before training, not after it


@dataclass(frozen=True)
class Answers:
    """What a model said about the items of one modality.

    Attributes:
        items: those that were read.
        embeddings: theirs, one row each.
        captions: written by the model.
        problems: items that could not be read.
        classes: names of all labels of the items, those that could not be read included.
        likelihoods: log of the likelihood of each class's sentences for each item; None where it was not asked for.
    """

    items: tuple[Item, ...]
    embeddings: Tensor
    captions: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    classes: tuple[str, ...] = ()
    likelihoods: Tensor | None = None

    def captioned(self) -> list[int]:
        """Returns the numbers of the items that have captions."""
        return [index for index, item in enumerate(self.items) if item.texts]


@torch.compiler.set_stance("force_eager")  # what training compiled is for its own shapes
def answer(
    bundle: Bundle,
    modality: str,
    items: Sequence[Item],
    batch_size: int,
    num_workers: int = 0,
    templates: Sequence[str] = (),
) -> Answers:
    """Reads, embeds and captions the items of one modality; with templates, scores the classes by likelihood."""
    classes = tuple(sorted({item.label for item in items if item.label is not None}))
    likelihoods: list[Tensor] = []
    read: list[Item] = []
    embeddings, captions, problems = [torch.empty(0, bundle.network.config.embedding_width)], [], []
    batches = evaluation_batches(items, bundle.processors[modality], batch_size, num_workers)
    with progress(total=len(items), desc=f"evaluating {modality}", leave=False) as bar:
        for own, inputs, broken in batches:
            count = len(own) + len(broken)
            problems.extend(broken)
            if inputs is not None:
                context, rows = bundle.encode(modality, inputs)
                own, context, rows, broken = _finite(own, context, rows)
                problems.extend(broken)
            if inputs is not None and own:
                embeddings.append(rows.cpu())
                captions.extend(written[0].text for written in bundle.write(modality, context, rows))
                if classes and templates:
                    score = partial(bundle.score, modality, context)
                    likelihoods.append(likelihood_scores(score, classes, templates))
                read.extend(own)
            bar.update(count)
    found = torch.cat(likelihoods) if likelihoods else None
    return Answers(tuple(read), torch.cat(embeddings), tuple(captions), tuple(problems), classes, found)


def _finite(items: list[Item], context: Tokens, embeddings: Tensor) -> tuple[list[Item], Tokens, Tensor, list[Problem]]:
    """Leaves out the items whose encoding is NaN or infinite; returns the rest and a problem for each left out."""
    usable = embeddings.isfinite().all(dim=1) & context.values.isfinite().flatten(1).all(dim=1)
    if usable.all():
        return items, context, embeddings, []
    reason = "the model's encoding of it is NaN or infinite"
    flags = usable.tolist()
    problems = [
        Problem(item.key, str(item.file), reason, modality=item.modality)
        for item, is_usable in zip(items, flags, strict=True)
        if not is_usable
    ]
    mask = None if context.mask is None else context.mask[usable]
    context = replace(context, values=context.values[usable], mask=mask)
    items = [item for item, is_usable in zip(items, flags, strict=True) if is_usable]
    return items, context, embeddings[usable], problems


def evaluate_modality(
    bundle: Bundle, answers: Answers, listed: int, config: EvaluationConfig, seed: int, judge: Judge | None = None
) -> dict[str, Any]:
    """Computes all figures of one modality.

    Args:
        bundle: the model, for texts.
        answers: what it said.
        listed: items of the split, unusable ones included.
        config: protocols.
        seed: of the gallery draws.
        judge: decides what is right where more than the references is known.

    Returns:
        "retrieval" and "captioning" if items have captions, "zero_shot" if items have labels, "used" and "listed".
    """
    result: dict[str, Any] = {"used": len(answers.items), "listed": listed}
    if not answers.items:
        return result
    captioned = answers.captioned()
    if captioned:
        texts = [answers.items[index].texts[: config.captions_per_item] for index in captioned]
        flat = [text for own in texts for text in own]
        owner = torch.tensor([index for index, own in enumerate(texts) for _ in own])
        found = averaged_retrieval(
            answers.embeddings[captioned], bundle.embed_text(flat), owner, flat, config.gallery, config.draws, seed
        )
        result["retrieval"] = found | {"used": len(captioned), "listed": listed}
        result["captioning"] = captioning(answers, judge, config.meteor) | {"listed": listed}
    labelled = [index for index, item in enumerate(answers.items) if item.label is not None]
    if labelled:
        said, templates = templates_for(config.templates, answers.items[0].modality)
        classes = class_embeddings(bundle.embed_text, answers.classes, templates)
        labels = torch.tensor([answers.classes.index(answers.items[index].label) for index in labelled])
        about = {"templates": said, "listed": listed}
        found = {"label": zero_shot_accuracy(answers.embeddings[labelled], classes, labels) | about}
        if answers.likelihoods is not None:
            found["label_by_likelihood"] = classification_accuracy(answers.likelihoods[labelled], labels) | about
        result["zero_shot"] = found
    return result


def captioning(answers: Answers, judge: Judge | None, meteor: bool = False) -> dict[str, Any]:
    """Scores the captions of the items that have references and, with a judge, fact by fact; {} if none has."""
    captioned = answers.captioned()
    if not captioned:
        return {}
    items, captions = [answers.items[i] for i in captioned], [answers.captions[i] for i in captioned]
    verdicts = None if judge is None else [judge(*pair) for pair in zip(items, captions, strict=True)]
    is_right = None if verdicts is None else lambda index, caption: verdicts[index][0]
    scores = caption_metrics(captions, [item.texts for item in items], is_right, meteor)
    if verdicts is not None:
        scores["attributes"] = sum(right for _, right, _ in verdicts) / sum(total for *_, total in verdicts)
    return scores


def evaluate_across(answers: Mapping[str, Answers], config: EvaluationConfig, seed: int) -> dict[str, dict[str, Any]]:
    """Retrieves items of one modality by those of another with the same key, for every ordered pair.

    Returns:
        Figures by "first_to_second"; pairs of modalities without common keys are left out.
    """
    results: dict[str, dict[str, Any]] = {}
    for first, second in permutations(answers, 2):
        rows = {item.key: index for index, item in enumerate(answers[second].items)}
        pairs = [(index, rows[item.key]) for index, item in enumerate(answers[first].items) if item.key in rows]
        if not pairs or f"{first}_to_{second}" in results:
            continue
        sides = [(answers[first], [a for a, _ in pairs]), (answers[second], [b for _, b in pairs])]
        embeddings = [side.embeddings[chosen] for side, chosen in sides]
        texts = [[side.items[index].texts[:1] for index in chosen] for side, chosen in sides]
        found = across_retrieval(*embeddings, *texts, config.gallery, config.draws, seed)
        shared = {key: value for key, value in found.items() if not isinstance(value, dict)}
        shared |= {"used": len(pairs)}
        results[f"{first}_to_{second}"] = {**found["first_to_second"], **shared}
        results[f"{second}_to_{first}"] = {**found["second_to_first"], **shared}
    return results
