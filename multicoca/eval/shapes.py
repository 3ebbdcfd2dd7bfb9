"""What the shapes world adds to evaluation, because its every fact is known.

A caption is exactly right when it is any valid phrasing of its scene; attributes are counted word by word;
zero-shot classification asks for one attribute of scenes with a single object, the others being anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch

from multicoca.data.sample import Item
from multicoca.data.shapes.language import attribute_score, valid_captions
from multicoca.data.shapes.scene import COLORS, PLACES, SHAPES, SIZES, SceneObject
from multicoca.data.shapes.source import scene_of
from multicoca.eval.evaluator import Answers, Judge
from multicoca.eval.zero_shot import class_embeddings, zero_shot_accuracy
from multicoca.modality import Processor, SceneRenderer
from multicoca.model.bundle import Bundle

_PROMPTS_PER_CLASS = 24  # sentences over the other attributes; more change nothing


def scene_judge(items: tuple[Item, ...], processor: Processor) -> Judge | None:
    """Returns the judge of these items, or None when not all of them come from the shapes world."""
    if not items or not isinstance(processor, SceneRenderer) or any(scene_of(item) is None for item in items):
        return None

    def judge(item: Item, caption: str) -> tuple[bool, int, int]:
        scene = scene_of(item)
        assert scene is not None, f"item {item.key} has no scene though all of its split have"
        facts = processor.scene_facts
        return caption in valid_captions(scene, facts), *attribute_score(caption, scene, facts)

    return judge


def all_references(item: Item, processor: Processor) -> list[str]:
    """Returns every right caption where the scene is known, or the listed ones; the first is a listed one."""
    scene = scene_of(item)
    if scene is None or not isinstance(processor, SceneRenderer):
        return list(item.texts)
    return [*item.texts, *sorted(valid_captions(scene, processor.scene_facts) - set(item.texts))]


def attribute_accuracy(bundle: Bundle, answers: Answers) -> dict[str, dict[str, object]]:
    """Classifies colour, shape, size and place of single objects by prompts.

    Returns:
        Zero-shot figures by attribute, with the number of classes as "classes".
    """
    single = [(row, scene) for row, item in enumerate(answers.items) if len((scene := scene_of(item)).objects) == 1]
    if not single:
        return {}
    rows = [row for row, _ in single]
    places = [place for line in PLACES for place in line]
    attributes = {"size": list(SIZES), "color": list(COLORS), "shape": list(SHAPES), "place": places}
    results: dict[str, dict[str, object]] = {}
    for attribute, names in attributes.items():
        templates = _templates(attributes, attribute)
        classes = class_embeddings(bundle.embed_text, names, templates)
        truth = torch.tensor([names.index(_words(scene.objects[0])[attribute]) for _, scene in single])
        accuracy = zero_shot_accuracy(answers.embeddings[rows], classes, truth)
        results[attribute] = {**accuracy, "classes": len(names), "listed": len(answers.items)}
    return results


def _words(target: SceneObject) -> Mapping[str, str]:
    return {"size": target.size, "color": target.color, "shape": target.shape, "place": target.place}


def _templates(attributes: Mapping[str, list[str]], asked: str) -> list[str]:
    """Returns sentences with {} for the attribute that is asked for, spread evenly over the others."""
    choices = {**attributes, asked: ["{}"]}
    sentences = [f"a {size} {color} {shape} {place}" for size, color, shape, place in product(*choices.values())]
    return sentences[:: max(1, len(sentences) // _PROMPTS_PER_CLASS)]
