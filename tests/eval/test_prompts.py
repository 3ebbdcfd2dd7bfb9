"""Templates come from YAML, by name or by modality, or are the user's own sentences."""

import pytest

from multicoca.cli.compose import compose_config
from multicoca.config import from_yaml, to_yaml
from multicoca.eval import prompts
from multicoca.eval.evaluator import EvaluationConfig
from multicoca.eval.prompts import sentences, template_names, templates_for, templates_named


def test_every_template_has_one_place_for_the_name_and_none_is_twice_there():
    for templates in map(templates_named, template_names()):
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 for template in templates)


def test_sets_have_the_published_sizes():
    assert len(templates_named("kinetics")) == 28
    assert len(templates_named("imagenet")) == 7
    assert "a demonstration of a person practicing {}." in templates_named("kinetics")


def test_caption_is_the_identity_and_braces_in_names_survive():
    assert sentences("a red ball", templates_named("caption")) == ["a red ball"]
    assert sentences("set {0}", ("a {}",)) == ["a set {0}"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], {"image": "photo", "video": "video", "points": "points", "smell": "photo"}),
        (["templates=imagenet"], {"image": "imagenet", "video": "imagenet", "smell": "imagenet"}),
        (["templates.video=kinetics"], {"image": "photo", "video": "kinetics", "points": "points"}),
        (["templates.smell=['it smells of {}']"], {"smell": ["it smells of {}"], "image": "photo"}),
    ],
)
def test_templates_are_chosen_for_all_or_by_modality(overrides, said):
    config = compose_config("train_shapes", [f"evaluation.{override}" for override in overrides])
    chosen = from_yaml(to_yaml(config)).evaluation.templates
    for modality, name in said.items():
        found, templates = templates_for(chosen, modality)
        assert found == name
        assert templates == (tuple(name) if isinstance(name, list) else templates_named(name))


def test_a_package_brings_templates_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "smell.yaml").write_text('- "it smells of {}"')
    monkeypatch.setattr(prompts, "configuration_folders", lambda: [tmp_path])
    prompts._sets.cache_clear()
    try:
        assert templates_for({}, "smell") == ("smell", ("it smells of {}",))
    finally:
        prompts._sets.cache_clear()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [("imagnet", "choose one of caption, imagenet"), ({"video": "typo"}, "no templates named 'typo'"),
     ({"video": ["a photo"]}, "place for the class name"), ({"video": 5}, "evaluation.templates.video is 5"),
     ({"video": [["{}"]]}, "expected"), ({"video": []}, "expected"), (["{}"], "by modality")],
)  # fmt: skip
def test_bad_names_and_templates_are_explained(chosen, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(templates=chosen)
