"""timm's vision transformers made tiny: all tokens, positions, stems, weights from files."""

import pytest
import torch
from multicoca_image import ConvStemConfig, TimmEncoder
from multicoca_image.stem import HalvingConv
from published_weights import publish
from safetensors.torch import save_file

from multicoca.modality import Encoder

timm = pytest.importorskip("timm")

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
PLAIN = {**SMALL, "class_token": False}
MODELS = {  # name, options, number of prefix tokens
    "plain": ("vit_tiny_patch16_224", SMALL, 1),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL, 5),
    "siglip": ("vit_base_patch16_siglip_224", SMALL, 0),
    "clip": ("vit_base_patch16_clip_224", SMALL, 1),
    "deit3": ("deit3_small_patch16_224", SMALL, 1),
    "rotary": ("vit_small_patch16_dinov3", SMALL, 5),
}


TOWERS = {  # name, options that leave the published heads, pooling and positions
    "clip": ("vit_base_patch32_clip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "quickgelu": ("vit_base_patch32_clip_quickgelu_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "siglip": ("vit_base_patch16_siglip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "eva": ("eva02_base_patch14_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "eva-clip": ("eva02_base_patch16_clip_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}


def published(tower: str, **options) -> torch.nn.Module:
    """The tower as timm builds it; its norms differ from where they start, as trained ones do."""
    torch.manual_seed(3)
    model = timm.create_model(TOWERS[tower][0], **TOWERS[tower][1], **options).eval()
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            layer.weight.uniform_(0.5, 2.0)
    return model


def published_tokens(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All tokens after the last norm, which EVA-02 without CLIP has behind its pooling."""
    return model.fc_norm(model.forward_features(images))


def parameters_without_gradient(encoder: TimmEncoder, images: torch.Tensor) -> list[str]:
    tokens = encoder({"pixels": images}).values
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]


def build(**settings) -> TimmEncoder:
    torch.manual_seed(0)
    defaults = {"name": "vit_tiny_patch16_224", "image_size_px": 32, "timm_options": PLAIN}
    return TimmEncoder(**{**defaults, **settings})


def pixels(height: int = 32, width: int = 32) -> dict[str, torch.Tensor]:
    return {"pixels": torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))}


def stem(count: int = 3) -> ConvStemConfig:
    return ConvStemConfig(channels=(8, 12, 16, 20)[:count])


@pytest.mark.parametrize("model", MODELS)
def test_all_tokens_come_out_and_a_gradient_reaches_every_parameter(model):
    name, options, num_prefix = MODELS[model]
    encoder = build(name=name, timm_options=options)
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder.blocks, torch.nn.ModuleList)
    assert (encoder.width, len(encoder.blocks)) == (32, 2)
    tokens = encoder(pixels())
    assert tokens.values.shape == (2, 16 + num_prefix, 32)
    assert tokens.mask is None
    assert tokens.grid == (None if num_prefix else (4, 4))
    torch.testing.assert_close(tokens.values, encoder.model.forward_features(pixels()["pixels"]))
    tokens.values.square().mean().backward()
    weightless = [name for name, value in encoder.named_parameters() if value.grad is None]
    assert weightless == []
    still = [name for name, value in encoder.named_parameters() if not value.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("patch_size", "count"), [(8, 3), (16, 4)])
def test_a_convolutional_stem_makes_the_same_grid(patch_size, count, dynamic):
    options = {**PLAIN, "patch_size": patch_size, "dynamic_img_size": dynamic}
    encoder = build(stem=stem(count), timm_options=options)
    tokens = encoder(pixels())
    assert tokens.grid == (32 // patch_size, 32 // patch_size)
    assert tokens.values.shape[1] == (32 // patch_size) ** 2
    tokens.values.square().mean().backward()
    assert all(value.grad.abs().sum() > 0 for value in encoder.parameters())


def test_a_convolutional_stem_keeps_the_variance():
    encoder = build(stem=ConvStemConfig(), image_size_px=64, timm_options={**PLAIN, "embed_dim": 128})
    out = encoder.model.patch_embed(torch.randn(8, 3, 64, 64))
    assert 0.4 < out.std() < 1.6


def test_stem_tokens_are_ordered_row_by_row():
    encoder = build(stem=stem())
    flat = encoder.model.patch_embed(pixels()["pixels"])
    encoder.model.patch_embed.channels_last = True
    rows = encoder.model.patch_embed(pixels()["pixels"])
    torch.testing.assert_close(rows.flatten(1, 2), flat)
    torch.testing.assert_close(rows, encoder.model.patch_embed.layers(pixels()["pixels"].movedim(1, -1)))


@pytest.mark.parametrize("stem_of", ["patch", stem()])
def test_other_image_sizes_at_run_time(stem_of):
    encoder = build(stem=stem_of, timm_options={**PLAIN, "dynamic_img_size": True})
    assert encoder(pixels(48, 64)).grid == (6, 8)
    assert encoder(pixels(8, 8)).values.shape == (2, 1, 32)
    with pytest.raises(ValueError, match=r"multiples of the patch size, 8 x 8"):
        encoder(pixels(36, 32))


def test_another_image_size_without_leave_says_what_to_set():
    with pytest.raises(ValueError, match=r"64 x 32 px.*32 x 32.*image_size_px.*dynamic_img_size"):
        build()(pixels(64, 32))


@pytest.mark.parametrize("position", ["sincos", "sincos_fixed"])
def test_sine_cosine_positions(position):
    encoder = build(position=position, timm_options=SMALL)  # with a class token
    table = encoder.model.pos_embed
    assert table.requires_grad == (position == "sincos")
    assert table[0, 0].abs().sum() == 0
    patches = table[0, 1:].reshape(4, 4, 4, 8)  # rows, columns, (sin y, sin x, cos y, cos x) in timm's order, waves
    assert torch.allclose(patches.square().sum((2, 3)), torch.tensor(16.0))
    assert len(table[0, 1:].unique(dim=0)) == 16
    torch.testing.assert_close(patches[3, 1].flatten().sort().values, patches[1, 3].flatten().sort().values)
    near, far = (table[0, 1] - table[0, 2]).norm(), (table[0, 1] - table[0, 4]).norm()
    assert near < far


def test_plain_attention_equals_fused_forward_and_backward():
    fused, plain = build(), build(attention="plain")
    assert [block.attn.fused_attn for block in plain.blocks] == [False, False]
    results = []
    for encoder in (fused, plain):
        values = encoder(pixels())
        values.values.square().mean().backward()
        results.append((values.values, [value.grad for value in encoder.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert build(stem=stem())(pixels()).values.isfinite().all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_from_a_local_file(suffix, whole, tmp_path):
    saved = build(stem=stem(), position="sincos")
    weights = saved.state_dict() if whole else saved.model.state_dict() | {"head.weight": torch.zeros(10, 32)}
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    torch.manual_seed(5)
    loaded = TimmEncoder("vit_tiny_patch16_224", 32, checkpoint=str(path), stem=stem(), timm_options=PLAIN)
    torch.testing.assert_close(loaded(pixels()).values, saved(pixels()).values)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_published_tower_with_its_heads_loads_strictly_and_gives_all_tokens(tower, tmp_path):
    name, options = TOWERS[tower]
    saved = published(tower, num_classes=7)
    save_file(saved.state_dict(), tmp_path / "tower.safetensors")
    encoder = TimmEncoder(name, checkpoint=str(tmp_path / "tower.safetensors"), timm_options=options).eval()
    images = pixels(224, 224)["pixels"]
    torch.testing.assert_close(encoder({"pixels": images}).values, published_tokens(saved, images))
    assert parameters_without_gradient(encoder, images) == []


@pytest.mark.parametrize("tower", TOWERS)
def test_a_published_tower_works_at_another_image_size(tower, tmp_path):
    name, options = TOWERS[tower]
    saved = published(tower)
    save_file(saved.state_dict(), tmp_path / "tower.safetensors")
    patch = saved.patch_embed.patch_size[0]
    encoder = TimmEncoder(name, 3 * patch, checkpoint=str(tmp_path / "tower.safetensors"), timm_options=options)
    count = encoder(pixels(3 * patch, 3 * patch)).values.shape[1]
    assert count == 9 + saved.num_prefix_tokens
    torch.testing.assert_close(encoder.blocks[1].norm2.weight, saved.blocks[1].norm2.weight)


@pytest.mark.parametrize("tower", TOWERS)
def test_weights_that_timm_fetches_are_all_there(tower, tmp_path, monkeypatch):
    name, options = TOWERS[tower]
    classes = timm.get_pretrained_cfg(name).num_classes
    saved = published(tower, num_classes=classes)
    publish(saved, name, tmp_path, monkeypatch)
    encoder = TimmEncoder(name, pretrained=True, timm_options=options).eval()
    images = pixels(224, 224)["pixels"]
    torch.testing.assert_close(encoder({"pixels": images}).values, published_tokens(saved, images))
    assert parameters_without_gradient(encoder, images) == []


def test_a_file_of_masked_image_modelling_keeps_its_last_norm(tmp_path):
    name, options = TOWERS["eva"]
    weights = published("eva", num_classes=0).state_dict()
    original = {key.replace("fc_norm", "norm"): value for key, value in weights.items()}
    save_file(original | {"mask_token": torch.zeros(1, 1, 32)}, tmp_path / "mim.safetensors")
    encoder = TimmEncoder(name, checkpoint=str(tmp_path / "mim.safetensors"), timm_options=options)
    torch.testing.assert_close(encoder.model.norm.weight.data, original["norm.weight"])


def test_positions_and_patches_of_a_file_are_resized(tmp_path):
    saved = build(timm_options=SMALL)
    save_file(saved.model.state_dict(), tmp_path / "weights.safetensors")
    loaded = build(
        image_size_px=64, checkpoint=str(tmp_path / "weights.safetensors"), timm_options={**SMALL, "patch_size": 16}
    )
    torch.testing.assert_close(loaded.model.pos_embed, saved.model.pos_embed)
    assert loaded.model.patch_embed.proj.weight.shape[-1] == 16
    larger = build(image_size_px=64, checkpoint=str(tmp_path / "weights.safetensors"), timm_options=SMALL)
    assert larger.model.pos_embed.shape == (1, 65, 32)
    torch.testing.assert_close(larger.model.pos_embed[:, 0], saved.model.pos_embed[:, 0])


def test_a_file_that_does_not_fit_names_the_weights(tmp_path):
    weights = build().model.state_dict()
    weights["blocks.7.extra"] = weights.pop("blocks.1.norm1.weight")
    weights["norm.bias"] = torch.zeros(7)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"Missing: blocks\.1\.norm1\.weight\. Unexpected: blocks\.7\.extra\."
    ) as error:
        build(checkpoint=str(tmp_path / "weights.safetensors"))
    assert "norm.bias [7], expected [32]" in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        build(checkpoint=str(tmp_path / "gone.pt"))


def test_weights_out_of_reach_say_what_to_set(monkeypatch):
    def unreachable(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no connection\).*encoder\.checkpoint"):
        build(pretrained=True)


def test_a_file_that_holds_no_weights_says_so(tmp_path):
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"page{suffix}"
        path.write_text("<!doctype html>")
        with pytest.raises(ValueError, match="cannot be read as weights"):
            build(checkpoint=str(path))
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")  # a pickled object, which is never loaded
    with pytest.raises(ValueError, match="cannot be read as weights"):
        build(checkpoint=str(tmp_path / "module.pt"))
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        build(checkpoint=str(tmp_path / "list.pt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18"}, r"'resnet18' is not a vision transformer.*list_models"),
        ({"name": "vit_tinny_patch16_224"}, r"has no model 'vit_tinny_patch16_224'.*vit_tiny_patch16_224"),
        ({"position": "rotary"}, r"learned, sincos, sincos_fixed"),
        ({"attention": "flash"}, r"fused, plain"),
        ({"stem": "conv"}, r"ConvStemConfig"),
        ({"stem": stem(2)}, r"2 layers .* patches of 4 px.*patch_size is 8"),
        ({"stem": stem(), "pretrained": True}, r"pretrained weights come with their own"),
        ({"position": "sincos", "pretrained": True}, r"pretrained weights come with their own"),
        ({"pretrained": True, "checkpoint": "x"}, r"set one of them"),
        ({"name": "vit_small_patch16_dinov3", "timm_options": SMALL, "position": "sincos"}, r"no position table"),
        ({"timm_options": {**PLAIN, "embed_dim": 30}, "position": "sincos"}, r"that 4 divides"),
    ],
)
def test_impossible_settings_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("channels", [(), (8, 0)])
def test_stems_need_channels(channels):
    with pytest.raises(ValueError, match="one positive number per layer|channels is 0"):
        ConvStemConfig(channels)


def test_the_convolution_by_slices_equals_that_of_pytorch():
    layer = HalvingConv(3, 5, bias=True).double()
    x = torch.randn(2, 8, 12, 3, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, 2, 1).permute(0, 2, 3, 1)
    weights = torch.randn_like(plain)
    found = torch.autograd.grad((layer(x) * weights).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad((plain * weights).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(layer(x), plain)
    torch.testing.assert_close(found, expected)
