import pytest

from multicoca.eval.prompts import TEMPLATES, sentences, templates_named


def test_every_template_has_one_place_for_the_name_and_none_is_twice_there():
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 for template in templates)


def test_sets_have_the_published_sizes():
    assert len(TEMPLATES["kinetics"]) == 28
    assert len(TEMPLATES["imagenet"]) == 7
    assert "a demonstration of a person practicing {}." in TEMPLATES["kinetics"]


def test_caption_is_the_identity_and_braces_in_names_survive():
    assert sentences("a red ball", templates_named("caption")) == ["a red ball"]
    assert sentences("set {0}", ("a {}",)) == ["a set {0}"]


def test_bad_names_and_templates_are_explained():
    with pytest.raises(ValueError, match="choose one of caption, photo"):
        templates_named("imagnet")
    with pytest.raises(ValueError, match="place for the class name"):
        sentences("ball", ("a photo",))
