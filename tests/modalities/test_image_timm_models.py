"""Names of timm: what is published under them, and what is near to those that it does not know."""

import pytest
from multicoca_image.timm_models import published_settings

pytest.importorskip("timm")


def test_a_tag_chooses_among_what_is_published():
    assert published_settings("convnext_tiny.fb_in22k")["crop_pct"] == 0.875
    assert published_settings("convnext_tiny.fb_in22k_ft_in1k_384")["input_size"] == (3, 384, 384)


def test_unknown_names_and_tags_list_the_near_ones():
    with pytest.raises(ValueError, match=r"has no model 'vit_base_patch16_sigllip_224'.*vit_base_patch16_siglip_224"):
        published_settings("vit_base_patch16_sigllip_224")
    with pytest.raises(ValueError, match=r"Near names: none"):
        published_settings("#")
    with pytest.raises(ValueError, match=r"tag \(weebli\).*vit_base_patch16_siglip_224\.webli"):
        published_settings("vit_base_patch16_siglip_224.weebli")
