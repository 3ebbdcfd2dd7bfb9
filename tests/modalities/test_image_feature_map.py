"""Backbones of timm made tiny: the map of any stage as tokens, weights from files, BatchNorm that keeps still."""

import pytest
import torch
from multicoca_image import TimmFeatureMap
from published_weights import publish
from safetensors.torch import save_file

from multicoca.modality import Encoder

timm = pytest.importorskip("timm")

MODELS = {  # name, settings
    "convnext": ("convnext_atto", {"timm_options": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}}),
    "resnet": (
        "resnet18",
        {"timm_options": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "zero_init_last": False}},
    ),
    "swin": (  # computes in [batch, height, width, channels] and is built for one size
        "swin_tiny_patch4_window7_224",
        {"image_size_px": 64, "timm_options": {"embed_dim": 8, "depths": (1, 1, 2, 1), "drop_path_rate": 0.0}},
    ),
}


def build(model: str, **changes) -> TimmFeatureMap:
    name, settings = MODELS[model]
    torch.manual_seed(0)
    return TimmFeatureMap(name, **{**settings, **changes})


def timm_model(model: str, **changes) -> torch.nn.Module:
    name, settings = MODELS[model]
    size = {"img_size": settings["image_size_px"]} if "image_size_px" in settings else {}
    torch.manual_seed(1)
    return timm.create_model(name, **{**size, **settings["timm_options"], **changes})


def pixels(height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    return {"pixels": torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", [0, -2, -1])
def test_tokens_are_the_places_of_timms_feature_map_row_by_row(model, stage):
    encoder = build(model, stage=stage).eval()
    backbone = timm_model(model, features_only=True, out_indices=(stage,)).eval()
    with torch.no_grad():
        for own, other in zip(encoder.parameters(), backbone.parameters(), strict=True):
            own.copy_(other)
    height, width = (64, 64) if model == "swin" else (64, 96)
    tokens = encoder(pixels(height, width))
    (expected,) = backbone(pixels(height, width)["pixels"])
    if backbone.output_fmt == "NCHW":
        expected = expected.permute(0, 2, 3, 1)
    assert tokens.grid == tuple(expected.shape[1:3])
    assert tokens.mask is None
    assert encoder.width == expected.shape[3] == tokens.values.shape[2]
    torch.testing.assert_close(tokens.values, expected.flatten(1, 2))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", [1, -1])
def test_a_gradient_reaches_every_parameter_and_the_blocks_hold_them_all(model, stage):
    encoder = build(model, stage=stage)
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder.blocks, torch.nn.ModuleList)
    assert len(encoder.blocks) > 2
    assert [id(value) for value in encoder.blocks.parameters()] == [id(value) for value in encoder.parameters()]
    assert all(name.startswith("model.") for name in encoder.state_dict())
    weights = torch.randn(encoder(pixels()).values.shape)
    (encoder(pixels()).values * weights).sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_batchnorm_keeps_still_in_training():
    encoder = build("resnet").train()
    assert encoder.training
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    assert "model.bn1.running_mean" in before
    together = encoder(pixels()).values
    alone = encoder({"pixels": pixels()["pixels"][:1]}).values
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(dict(encoder.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", [1, -1])
def test_a_file_of_the_whole_model_loads(model, stage, tmp_path):
    saved = timm_model(model, num_classes=5).eval()
    save_file(saved.state_dict(), tmp_path / "whole.safetensors")
    encoder = build(model, stage=stage, checkpoint=str(tmp_path / "whole.safetensors")).eval()
    index = range(len(saved.feature_info))[stage]
    (expected,) = saved.forward_intermediates(pixels()["pixels"], indices=[index], intermediates_only=True)
    torch.testing.assert_close(encoder(pixels()).values, expected.flatten(2).mT)
    torch.save(encoder.state_dict(), tmp_path / "own.pt")
    again = build(model, stage=stage, checkpoint=str(tmp_path / "own.pt")).eval()
    torch.testing.assert_close(again(pixels()).values, encoder(pixels()).values)


def test_a_file_for_another_image_size_is_adapted(tmp_path):
    save_file(timm_model("swin", window_size=4).state_dict(), tmp_path / "weights.safetensors")
    encoder = build("swin", image_size_px=96, checkpoint=str(tmp_path / "weights.safetensors"))
    assert encoder(pixels(96, 96)).grid == (3, 3)


@pytest.mark.parametrize("model", MODELS)
def test_weights_that_timm_fetches_are_all_there(model, tmp_path, monkeypatch):
    saved = timm_model(model).eval()
    publish(saved, MODELS[model][0], tmp_path, monkeypatch)
    encoder = build(model, pretrained=True).eval()
    index = len(saved.feature_info) - 1
    (expected,) = saved.forward_intermediates(pixels()["pixels"], indices=[index], intermediates_only=True)
    torch.testing.assert_close(encoder(pixels()).values, expected.flatten(2).mT)


def test_a_file_that_does_not_fit_names_the_weights(tmp_path):
    weights = timm_model("convnext").state_dict()
    weights["stages.1.extra"] = weights.pop("stages.1.blocks.0.gamma")
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"Missing: stages\.1\.blocks\.0\.gamma\. Unexpected: stages\.1\.extra\."):
        build("convnext", stage=1, checkpoint=str(tmp_path / "weights.safetensors"))


def test_backbones_for_one_image_size_say_what_to_set():
    with pytest.raises(ValueError, match=r"64 x 96 px.*64 x 64.*image_size_px"):
        build("swin")(pixels(64, 96))
    with pytest.raises(ValueError, match=r"'convnext_atto' takes images of any size; remove image_size_px"):
        build("convnext", image_size_px=64)


def test_a_backbone_for_one_image_size_can_be_let_loose():
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
    assert TimmFeatureMap("vit_tiny_patch16_224", timm_options=options)(pixels(32, 48)).grid == (2, 3)


def test_a_model_without_a_feature_map_says_so(monkeypatch):
    monkeypatch.delattr("timm.models.resnet.ResNet.forward_intermediates")
    with pytest.raises(ValueError, match=r"'resnet18' gives no feature map.*convnext_tiny"):
        build("resnet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convnextt_atto"}, r"has no model 'convnextt_atto'.*convnext_atto"),
        ({"name": "convnext_atto.no_such"}, r"no_such.*convnext_atto\.d2_in1k"),
        ({"stage": 4}, r"stage is 4; .* 0 \(8 channels, 1/4\).* 3 \(32 channels, 1/32\), or -1 to -4"),
        ({"stage": -5}, r"stage is -5"),
        ({"pretrained": True, "checkpoint": "x"}, r"set one of them"),
        ({"checkpoint": "gone.pt"}, r"gone\.pt does not exist"),
    ],
)
def test_impossible_settings_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        TimmFeatureMap(**{"name": "convnext_atto", **MODELS["convnext"][1], **settings})
