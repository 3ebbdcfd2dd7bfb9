"""Starting from a model: what comes over, what is new, what is resized, and what is refused by name."""

from dataclasses import replace

import pytest
import torch

from multicoca.cli.compose import compose_training
from multicoca.runs.model_folder import build_bundle, read_spec
from multicoca.runs.save import save
from multicoca.runs.start_from import spec_differences, start_from
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.optim import OptimConfig, build_optimizers, set_tuning

TOKENIZER = TextTokenizer.learn(["a red ball", "a blue cube"], 300, 48)
SIZES = ["model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.embedding_width=24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of images and videos, untrained."""
    folder = tmp_path_factory.mktemp("model")
    config = compose_training(["modality=[image,video]", "seed=5", *SIZES])
    save(folder, build_bundle(config.spec, TOKENIZER), config, "")
    return folder


def started(folder, *overrides):
    """Returns (the network, what it took over, its configuration)."""
    config = compose_training([f"start_from={folder}", "data=shapes", *overrides])
    network = build_bundle(config.spec, TOKENIZER).network
    return network, start_from(network, folder, read_spec(folder), config.spec), config


def test_sizes_tokenizer_and_modalities_come_from_the_model_and_nothing_else_is_new(folder):
    network, start, config = started(folder)
    assert (config.model.width, list(config.modalities)) == (32, ["image", "video"])
    assert (start.new, start.resized) == ((), ())
    first = build_bundle(compose_training(["modality=[image,video]", "seed=5", *SIZES]).spec, TOKENIZER).network
    for name, value in first.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)


def test_a_modality_is_added_and_alone_is_new(folder):
    network, start, config = started(folder, "modality=[points]")
    assert list(config.modalities) == ["image", "video", "points"]
    assert {".".join(name.split(".")[:2]) for name in start.new} == {"encoders.points", "heads.points"}
    set_tuning(network, "new", new=start.new)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(start.new)


def test_fine_tuning_has_rates_of_its_own_and_what_is_new_learns_faster(folder):
    network, start, config = started(folder, "modality=[points]")
    assert (config.optim.lr, config.optim.muon_lr) == (1e-5, None)
    (optimizer,) = build_optimizers(network, config.optim, new=start.new)
    scale_of = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert scale_of[parameter] == pytest.approx(80.0 if name in start.new else 1.0), name
    rates = build_optimizers(network, replace(config.optim, new_lr=None), new=start.new)[0].param_groups
    assert {group["lr_scale"] for group in rates} == {1.0}


def test_a_modality_without_data_is_frozen_but_for_what_others_share(folder):
    network, _, _ = started(folder, "modality=[points]")
    set_tuning(network, "all", idle=["image", "points"])
    trained = {name for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert not any(name.startswith(("heads.image.", "heads.points.", "encoders.points.")) for name in trained)
    assert any(name.startswith("encoders.image.") for name in trained)  # the video's frames go through it
    set_tuning(network, "all", idle=["image", "video", "points"])
    assert not any(p.requires_grad for p in network.encoders.parameters())


def test_what_is_set_applies(folder):
    _, start, config = started(folder, "model.contrastive=sigmoid", "modalities.image.processor.size_px=64")
    assert config.model.contrastive == "sigmoid"
    assert {name.rpartition(".")[2] for name in start.new} == {"logit_bias"}
    before = read_spec(folder)
    assert spec_differences(before, config.spec) == ["model.contrastive: softmax there, sigmoid here"]


def test_other_sizes_of_inputs_resize_positions(folder):
    sizes = ["modalities.image.processor.size_px=96", "modalities.image.encoder.image_size_px=96"]
    network, start, _ = started(
        folder, *sizes, "modalities.video.processor.size_px=96", "modalities.video.encoder.num_frames=6"
    )
    assert set(start.resized) == {"encoders.image.model.pos_embed", "encoders.video.pooling.position"}
    assert start.new == ()
    old = build_bundle(read_spec(folder), TOKENIZER).network
    for name, values in old.state_dict().items():
        if "pos_embed" not in name and "pooling.position" not in name:
            torch.testing.assert_close(network.state_dict()[name], values, rtol=0, atol=0)
    table, resized = (n.encoders["image"].model.pos_embed for n in (old, network))
    assert (table.shape[1], resized.shape[1]) == (16, 36)
    # the corners of the grid stay where they are, up to the blur of the interpolation
    torch.testing.assert_close(resized[0, 0], table[0, 0], rtol=0, atol=0.3)
    torch.testing.assert_close(resized[0, -1], table[0, -1], rtol=0, atol=0.3)
    times, longer = (n.encoders["video"].pooling.position for n in (old, network))
    torch.testing.assert_close(longer[0], times[0])
    torch.testing.assert_close(longer[-1], times[-1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=64", r"have no place in the model.*model\.width: 32 there, 64 here"),
        ("model=tiny", r"model\.width: 32 there, 128 here"),
        ("experiment=coca_base", r"remove text\.vocab_size=64000"),
        ("modalities.image.encoder.timm_options.depth=2", r"timm_options\.depth: 3 there, 2 here"),
        ("text.vocab_size=900", r"start_from brings the tokenizer of its model; remove text\.vocab_size=900"),
    ],
)
def test_what_cannot_apply_is_refused_by_name(folder, override, message):
    with pytest.raises(ValueError, match=message):
        started(folder, override, "data.root=.")


def test_nothing_new_cannot_be_tuned_alone(folder):
    network, start, _ = started(folder)
    with pytest.raises(ValueError, match="nothing of the model is new"):
        set_tuning(network, "new", new=start.new)


def test_a_rate_for_what_is_new_needs_one_for_the_rest():
    with pytest.raises(ValueError, match="new_lr"):
        OptimConfig(lr=0.0, new_lr=1e-3)
