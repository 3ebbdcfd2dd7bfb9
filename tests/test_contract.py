"""The contract, for every modality of this project, on files that it draws itself."""

import pytest
import torch
from conftest import VectorEncoder

from multicoca.build import build_modalities
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import draw_scene
from multicoca.modality import Modality
from multicoca.testing import check_modality
from multicoca.tokens import Tokens


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return build_modalities(compose_config("train", []).modalities)


@pytest.mark.parametrize("name", ["image", "video", "points"])
def test_the_contract_holds(name, modalities, tmp_path):
    processor = modalities[name].processor
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}{processor.scene_suffix}")
        files[-1].write_bytes(processor.render(draw_scene(0, "train", index)))
    check_modality(modalities[name], files)


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
