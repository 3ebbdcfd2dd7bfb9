"""open_clip's CoCa in this core: the same numbers, and the same file back."""

import logging
import warnings

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_coca import SMALL, randomise

from multicoca.api import MultiCoCa, load
from multicoca.cli.main import main
from multicoca.convert.models import convert_open_clip
from multicoca.convert.open_clip import to_open_clip

TEXTS = ["a photo of a cat on a mat", "cat", "", "word " * 100, "x " * 74]


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    # the pooler is as wide as the embedding; 128 keeps it a multiple of its 8 heads
    return randomise(open_clip.CoCa(**{**SMALL, "embed_dim": 128}))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def largest_difference(reference: torch.nn.Module, model: MultiCoCa, size_px: int) -> float:
    """Compares embeddings and the caption logits of every real token, texts of one batch and alone."""
    network, generator = model.bundle.network, torch.Generator().manual_seed(2)
    pixels = torch.randn(len(TEXTS), 3, size_px, size_px, generator=generator)
    theirs = reference(pixels, open_clip.tokenize(TEXTS, context_length=reference.context_length))
    differences = []
    with warnings.catch_warnings(action="ignore"):
        for rows in (range(len(TEXTS)), [0], [1], [2]):
            ids, lengths = model.bundle.tokenizer([TEXTS[row] for row in rows])
            context, source = network.encode("image", {"pixels": pixels[list(rows)]})
            tokens, _ = network.text.unimodal(ids, lengths)
            logits = network.heads["image"].caption_head(network.text.multimodal(tokens, context))
            differences.append(relative(source, theirs["image_features"][list(rows)]))
            differences.append(relative(network.encode_text(ids, lengths), theirs["text_features"][list(rows)]))
            for place, row in enumerate(rows):
                count = min(int(lengths[place]), theirs["logits"].shape[1])
                differences.append(relative(logits[place, :count], theirs["logits"][row, :count]))
    torch.testing.assert_close(network.heads["image"].log_scale[0], reference.logit_scale)
    return max(differences)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("coca_ViT-B-32", 253_560_065, 629), ("coca_ViT-L-14", 638_450_177, 773)],
)
def test_embeddings_and_logits_are_open_clips(name, parameters, tensors):
    logging.disable(logging.WARNING)  # it says that no weights were loaded
    reference = randomise(open_clip.create_model(name))
    logging.disable(logging.NOTSET)
    weights = reference.state_dict()
    assert len(weights) == tensors
    model = convert_open_clip(weights)
    assert sum(parameter.numel() for parameter in model.bundle.network.parameters()) == parameters
    assert largest_difference(reference, model, 224) < 1e-5
    back = to_open_clip(model.bundle.network.state_dict(), model.config.model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_a_small_coca_agrees_and_its_mask_matters(small):
    model = convert_open_clip(small.state_dict())
    assert largest_difference(small, model, 64) < 1e-5
    model.bundle.network.text.as_open_clip = False
    assert largest_difference(small, model, 64) > 1e-3


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_goes_in_and_out_by_the_command_line(small, tmp_path, suffix, capsys):
    weights = small.state_dict()
    source, folder, out = tmp_path / "coca.safetensors", tmp_path / "model", tmp_path / f"back{suffix}"
    save_file(weights, source)
    assert main(["convert", "open_clip", str(source), "--out", str(folder), "--modalities", "image,video"]) == 0
    assert load(folder).bundle.network.config.cls_mask == "open_clip"
    assert main(["export", "open_clip", str(folder), "--out", str(out)]) == 0
    assert "left out" in capsys.readouterr().out
    back = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    fresh = open_clip.CoCa(**{**SMALL, "embed_dim": 128})
    fresh.load_state_dict(back, strict=True)
    assert all(torch.equal(value, weights[key]) for key, value in fresh.state_dict().items())


def test_wrappers_of_training_runs_are_taken_off(small):
    weights = small.state_dict()
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    wrapped["module.logit_scale"] = wrapped["module.logit_scale"].reshape(1)
    plain = convert_open_clip(weights).bundle.network.state_dict()
    for checkpoint in ({"state_dict": wrapped, "epoch": 3}, {"state_dict": {}, "state_dict_ema": wrapped}):
        found = convert_open_clip(checkpoint).bundle.network.state_dict()
        assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_a_missing_an_unused_and_a_misshapen_tensor_are_named(small):
    weights = dict(small.state_dict())
    name = "text_decoder.cross_attn.1.ln_1_kv.weight"
    with pytest.raises(ValueError, match=f"Missing: {name}"):
        convert_open_clip({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"Not used: visual\.extra"):
        convert_open_clip({**weights, "visual.extra": torch.zeros(3)})
    with pytest.raises(ValueError, match=rf"{name} \[5\] does not fit .*norm_context.weight \[128\]"):
        convert_open_clip({**weights, name: torch.zeros(5)})
    with pytest.raises(ValueError, match="logit_bias"):
        convert_open_clip({**weights, "logit_bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="no tensor 'text.text_projection'"):
        convert_open_clip({key: value for key, value in weights.items() if key != "text.text_projection"})


@pytest.mark.parametrize(
    ("first", "looks"),
    [
        ("visual.class_embedding", "without a caption decoder"),
        ("vision_model.embeddings.class_embedding", "Hugging Face"),
        ("encoders.image.model.cls_token", "MultiCoCa"),
        ("something", "no model known here"),
    ],
)
def test_a_checkpoint_of_another_model_is_told_what_it_looks_like(first, looks):
    with pytest.raises(ValueError, match=looks):
        convert_open_clip({first: torch.zeros(1)})


def test_a_truncated_file_is_an_error_that_names_it(small, tmp_path, capsys):
    for name, write in (("a.safetensors", save_file), ("b.pt", torch.save)):
        write(small.state_dict(), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert main(["convert", "open_clip", str(tmp_path / name), "--out", str(tmp_path / "model")]) == 2
        assert name in capsys.readouterr().err
        assert not (tmp_path / "model").exists()


def test_another_image_size_gives_what_open_clip_gives(small):
    wider = open_clip.CoCa(**{**SMALL, "embed_dim": 128, "vision_cfg": {**SMALL["vision_cfg"], "image_size": 96}})
    weights = dict(small.state_dict())
    open_clip.model.resize_pos_embed(weights, wider)
    wider.load_state_dict(weights)
    model = convert_open_clip(small.state_dict(), image_size_px=96)
    assert model.bundle.processors["image"].size_px == 96
    assert largest_difference(wider.eval(), model, 96) < 1e-5
    with pytest.raises(ValueError, match="multiple of the patch size"):
        convert_open_clip(small.state_dict(), image_size_px=100)


def test_another_context_length_changes_every_part_and_keeps_cls(small):
    plain = convert_open_clip(small.state_dict())
    for length in (32, 100):
        model = convert_open_clip(small.state_dict(), context_length=length)
        positions = model.bundle.network.text.position_embedding
        assert positions.shape == (length + 1, 128)
        assert torch.equal(positions[-1], plain.bundle.network.text.position_embedding[-1])
        with pytest.warns(UserWarning, match="texts are cut"):
            ids, lengths = model.bundle.tokenizer(["word " * 200])
        assert int(lengths) == length
        model.bundle.network.encode_text(ids, lengths)
    shorter = convert_open_clip(small.state_dict(), context_length=32)
    assert torch.equal(shorter.embed_text(["a cat"]), plain.embed_text(["a cat"]))


def test_a_video_without_motion_is_described_as_its_image(small):
    model = convert_open_clip(small.state_dict(), ("image", "video"), num_frames=4)
    network = model.bundle.network
    pixels = torch.randn(2, 3, 64, 64)
    frames = {"frames": pixels[:, None].expand(2, 4, 3, 64, 64), "mask": torch.ones(2, 4, dtype=torch.bool)}
    with torch.no_grad():
        context, image = network.encode("image", {"pixels": pixels})
        frame_context, video = network.encode("video", frames)
    torch.testing.assert_close(video, image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frame_context.values, context.values, rtol=1e-4, atol=1e-5)
    assert network.heads["video"].caption_head is network.heads["image"].caption_head


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 231), (224, 224), (90, 80)])
def test_pictures_are_prepared_as_open_clip_prepares_them(small, height, width):
    noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    model = convert_open_clip(small.state_dict(), image_size_px=224)
    expected = open_clip.image_transform(224, is_train=False)(picture)
    sample = model.bundle.processors["image"].preprocess(picture, False, torch.Generator())
    (found,) = model.collate("image", [sample])["pixels"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
