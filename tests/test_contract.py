"""The contract, for every modality of this project, on files that it draws itself."""

from typing import Any

import pytest
import torch
from conftest import VectorEncoder
from multicoca_image import ImageProcessor, TimmEncoder, TimmFeatureMap
from torch import nn

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import Modality
from multicoca.testing import check_modality
from multicoca.tokens import Tokens


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    return compose_config("train", []).modalities


@pytest.fixture(scope="module")
def modalities(specs) -> dict[str, Modality]:
    return build_modalities(specs)


@pytest.mark.parametrize("name", ["image", "video", "points"])
def test_the_contract_holds(name, specs, modalities, tmp_path):
    processor = modalities[name].processor
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}{processor.scene_suffix}")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    check_modality(modalities[name], files, lambda: build_modalities(specs, seed=1)[name].encoder)


TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        (TimmEncoder, "vit_base_patch32_clip_quickgelu_224", {"image_size_px": 64, "timm_options": TINY}),
        (TimmEncoder, "vit_base_patch16_siglip_224", {"image_size_px": 64, "timm_options": TINY}),
        (TimmEncoder, "eva02_base_patch14_224", {"image_size_px": 70, "timm_options": TINY}),
        (TimmFeatureMap, "convnext_atto", {"timm_options": {"depths": (1, 1, 1, 1)}}),
        # an untrained ResNet of timm starts with branches times zero, which no gradient passes
        (TimmFeatureMap, "resnet18", {"timm_options": {"layers": (1, 1, 1, 1), "zero_init_last": False}}),
        (TimmFeatureMap, "swin_tiny_patch4_window7_224", {"image_size_px": 64, "stage": 1}),
    ],
)
def test_the_contract_holds_for_encoders_of_timm(kind: type[nn.Module], name, settings, tmp_path):
    processor = ImageProcessor(size_px=settings.get("image_size_px", 64))
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.jpg")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    torch.manual_seed(0)
    check_modality(Modality("image", processor, kind(name, **settings)), files, lambda: kind(name, **settings))


class _Leaky(VectorEncoder):
    """Lets a sample see the others of its batch."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> Tokens:
        pixels = inputs["pixels"].flatten(1)[:, :6]
        values = self.blocks[0](pixels + pixels.mean(dim=0))
        return Tokens(values[:, None])


def test_a_broken_promise_is_found(modalities, tmp_path):
    processor = modalities["image"].processor
    files = []
    for index in range(2):
        files.append(tmp_path / f"{index}.jpg")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    with pytest.raises(AssertionError, match="other samples must not change"):
        check_modality(Modality("image", processor, _Leaky()), files)
