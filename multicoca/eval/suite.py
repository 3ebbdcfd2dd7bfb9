"""The whole evaluation of a model on a source: every modality, across modalities, held-out combinations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from multicoca.data.annotations import TEST, VALIDATION
from multicoca.data.sample import Problem
from multicoca.data.sources import Listing
from multicoca.data.splits import COMPOSITION, evaluation_splits
from multicoca.eval.evaluator import (
    Answers,
    EvaluationConfig,
    answer,
    captioning,
    evaluate_across,
    evaluate_modality,
)
from multicoca.eval.prompts import templates_for
from multicoca.eval.shapes import attribute_accuracy, scene_judge
from multicoca.model.bundle import Bundle
from multicoca.nn.precision import exact_products


def evaluate(
    bundle: Bundle, listing: Listing, config: EvaluationConfig, seed: int, num_workers: int = 0
) -> tuple[dict[str, Any], dict[str, Answers], list[Problem]]:
    """Evaluates on the test split, or validation where a modality has no test, and on held-out combinations if any.

    Returns:
        (results in the form of results.json, answers by modality, items that could not be read).

    Raises:
        ValueError: there is no test or validation item of any modality.
    """
    with exact_products(), torch.autocast(bundle.device.type, enabled=False):
        return _evaluate(bundle, listing, config, seed, num_workers)


def _evaluate(
    bundle: Bundle, listing: Listing, config: EvaluationConfig, seed: int, num_workers: int
) -> tuple[dict[str, Any], dict[str, Answers], list[Problem]]:
    splits = evaluation_splits(listing, bundle.processors)
    if not splits:
        raise ValueError(
            "there is no test item of any of the model's modalities, nor a validation item; give some lines the split "
            f"'test'. The splits are {', '.join(listing.listed) or 'none'}"
        )
    results: dict[str, Any] = {"modalities": {}, "across": {}, "protocol": protocol(config, seed, splits, bundle)}
    answers: dict[str, Answers] = {}
    evaluated = {TEST, *splits.values()}
    problems = [
        problem
        for problem in listing.problems
        if problem.split == COMPOSITION
        or problem.split in ((splits[problem.modality],) if problem.modality in splits else evaluated)
    ]
    for modality, split in splits.items():
        items, listed = listing.of(split).get(modality, ()), listing.listed[split][modality]
        templates = templates_for(config.templates, modality)[1] if config.likelihood else ()
        found = answers[modality] = answer(bundle, modality, items, config.batch_size, num_workers, templates)
        problems.extend(replace(problem, split=split) for problem in found.problems)
        judge = scene_judge(found.items, bundle.processors[modality])
        result = {"split": split, **evaluate_modality(bundle, found, listed, config, seed, judge)}
        if judge is not None:
            result["zero_shot"] = attribute_accuracy(bundle, found)
        held_out = listing.of(COMPOSITION).get(modality)
        if held_out:
            unseen = answer(bundle, modality, held_out, config.batch_size, num_workers)
            problems.extend(replace(problem, split=COMPOSITION) for problem in unseen.problems)
            scores = captioning(unseen, scene_judge(unseen.items, bundle.processors[modality]))
            result["composition"] = {**scores, "listed": listing.listed[COMPOSITION][modality]}
        results["modalities"][modality] = result
    results["across"] = evaluate_across(answers, config, seed)
    return results, answers, problems


def protocol(config: EvaluationConfig, seed: int, splits: Mapping[str, str], bundle: Bundle) -> dict[str, Any]:
    """Says how the figures were made, on which split of each modality, in which precision."""
    untested = [modality for modality, split in splits.items() if split == VALIDATION]
    return {
        "split": f"{VALIDATION} for {', '.join(untested)}, which has no test split" if untested else TEST,
        "retrieval": f"galleries of {config.gallery} items without common captions, mean of {config.draws} draws; "
        "expected rank under ties",
        "captions_per_item": config.captions_per_item or "all",
        "decoding": "greedy",
        "captioning": "exact_match: any valid caption (a reference, or any true and complete phrasing where the "
        "scene is known); BLEU-4, ROUGE-L and CIDEr-D of pycocoevalcap",
        "seed": seed,
        "precision": f"{str(bundle.dtype).removeprefix('torch.')} on {bundle.device.type}, without autocast or TF32",
    }


def probe(
    bundle: Bundle, items: Mapping[str, list], config: EvaluationConfig
) -> tuple[dict[str, float], dict[str, Answers]]:
    """Evaluates captions of a few items of each modality, for the log during training.

    Returns:
        (figures by TensorBoard tag, answers by modality).
    """
    scalars: dict[str, float] = {}
    answers: dict[str, Answers] = {}
    for modality, own in items.items():
        with exact_products(), torch.autocast(bundle.device.type, enabled=False):
            found = answers[modality] = answer(bundle, modality, own[: config.probe_items], config.batch_size)
        if found.items:
            scores = captioning(found, scene_judge(found.items, bundle.processors[modality]))
            for name in ("exact_match", "attributes"):
                if name in scores:
                    scalars[f"evaluation/{name}/{modality}"] = scores[name]
    return scalars, answers
