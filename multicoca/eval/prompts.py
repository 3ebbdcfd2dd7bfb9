"""Templates that turn a class name into sentences for zero-shot classification.

A class is the mean of its sentences' embeddings. Captioners score better on sentences like those they were trained on,
so templates are a choice of the evaluation: a set by name, `templates/NAME.yaml` among the configurations of this
project and of modality packages, or sentences of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from multicoca.modality import configuration_folders

FALLBACK = "photo"
_FOLDER = "templates"


def templates_for(chosen: Any, modality: str) -> tuple[str | list[str], tuple[str, ...]]:
    """Returns what a modality's results say of its templates, and the templates.

    Args:
        chosen: the name of a set for all modalities, or by modality a name or sentences. A modality that is left out
            has the set of its own name, or "photo" if there is none.
        modality: which one.
    """
    if isinstance(chosen, Mapping):
        chosen = chosen.get(modality, modality if modality in template_names() else FALLBACK)
    return (chosen, templates_named(chosen)) if isinstance(chosen, str) else (list(chosen), tuple(chosen))


def check_templates(chosen: Any) -> None:
    """Checks a choice of templates.

    Raises:
        ValueError: there is no set of a name, or sentences of one's own have no place for the class name.
    """
    if isinstance(chosen, str):
        templates_named(chosen)
        return
    if not isinstance(chosen, Mapping):
        raise ValueError(f"evaluation.templates is {chosen!r:.100}; expected a name, or names or sentences by modality")
    for modality, own in chosen.items():
        if isinstance(own, str):
            templates_named(own)
        elif isinstance(own, Sequence) and own and all(isinstance(template, str) for template in own):
            sentences("", own)
        else:
            raise ValueError(
                f"evaluation.templates.{modality} is {own!r:.100}; expected {' or '.join(template_names())}, or a list "
                "of sentences with {} for the class name"
            )


def template_names() -> list[str]:
    """Returns the names of all sets."""
    return sorted(_sets())


def templates_named(name: str) -> tuple[str, ...]:
    """Returns a set of templates.

    Raises:
        ValueError: there is no set of that name; the message lists those there are.
    """
    if name not in _sets():
        raise ValueError(f"there are no templates named '{name}'; choose one of {', '.join(template_names())}")
    return _sets()[name]


@cache
def _sets() -> dict[str, tuple[str, ...]]:
    folders = [folder / _FOLDER for folder in (*configuration_folders(), files("multicoca_configs"))]
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.name.endswith(".yaml")]
    return {path.name.removesuffix(".yaml"): tuple(yaml.safe_load(path.read_text("utf-8"))) for path in found}


def sentences(class_name: str, templates: Sequence[str]) -> list[str]:
    """Puts a class name into every template.

    Raises:
        ValueError: a template has no place for the name.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template '{template}' has no {{}}, the place for the class name")
    return [template.replace("{}", class_name) for template in templates]
