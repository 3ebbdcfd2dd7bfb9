"""Templates that turn a class name into sentences for zero-shot classification.

A class is the mean of its sentences' embeddings. Captioners score better on sentences like those they were
trained on, so the set is a choice of the evaluation, by name; "caption" leaves names that are sentences alone.

Sources: "imagenet" is the subset of seven that the CLIP repository's notebook on prompts selects; "kinetics" are
the 28 of its `data/prompts.md`, wording kept ("a example"); "modelnet" are the first of ULIP's (arXiv 2212.05171).
"""

from __future__ import annotations

from collections.abc import Sequence

_KINETICS_STEMS = ("a photo of", "a video of", "a example of", "a demonstration of")
_KINETICS_FORMS = (
    "{}.",
    "a person {}.",
    "a person using {}.",
    "a person doing {}.",
    "a person during {}.",
    "a person performing {}.",
    "a person practicing {}.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "caption": ("{}",),
    "photo": ("a photo of a {}.",),
    "imagenet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "kinetics": tuple(f"{stem} {form}" for stem in _KINETICS_STEMS for form in _KINETICS_FORMS),
    "modelnet": (
        "a point cloud model of {}.",
        "There is a {} in the scene.",
        "There is the {} in the scene.",
        "a photo of a {} in the scene.",
        "a photo of the {} in the scene.",
        "a photo of one {} in the scene.",
    ),
}


def templates_named(name: str) -> tuple[str, ...]:
    """Returns a set of templates.

    Raises:
        ValueError: there is no set of that name; the message lists those there are.
    """
    if name not in TEMPLATES:
        raise ValueError(f"there are no templates named '{name}'; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def sentences(class_name: str, templates: Sequence[str]) -> list[str]:
    """Puts a class name into every template.

    Raises:
        ValueError: a template has no place for the name.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template '{template}' has no {{}}, the place for the class name")
    return [template.replace("{}", class_name) for template in templates]
