"""From a picture to a sample: exact values, crops that repeat, and scenes as files."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from multicoca_image import ImageProcessor, timm_processor
from PIL import Image

from multicoca.data.shapes import draw_scene
from multicoca.data.shapes.geometry import front_view
from multicoca.data.shared_memory import bytes_of
from multicoca.modality import Processor, SceneRenderer


def finished_sample(processor, raw, train, generator):
    """What the encoder gets of one sample."""
    (found,) = processor.finish(processor.collate([processor.preprocess(raw, train, generator)]))["pixels"]
    return found


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 255 // height, columns * 255 // width, rows * 0], -1).astype(np.uint8))


def test_it_is_a_processor_that_renders_scenes():
    assert isinstance(ImageProcessor(), Processor)
    assert isinstance(ImageProcessor(), SceneRenderer)


def test_importing_the_package_imports_no_optional_package():
    code = "import sys, multicoca_image; print(sorted({'timm', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_normalisation_is_exact():
    processor = ImageProcessor(size_px=2, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = finished_sample(processor, Image.new("RGB", (2, 2), (255, 0, 51)), False, seeded())
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 2, 2)
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, 0.2]))


def test_a_picture_travels_as_bytes():
    processor = ImageProcessor(size_px=288)
    inputs = processor.collate([processor.preprocess(noise(300, 288), False, seeded())] * 2)
    assert bytes_of(inputs) == 2 * 3 * 288 * 288  # a quarter of what it has on the device
    assert bytes_of(processor.finish(inputs)) == 4 * bytes_of(inputs)


@pytest.mark.parametrize("train", [False, True])
def test_a_picture_of_the_right_size_is_only_normalised(train):
    image = noise(16, 16)
    pixels = finished_sample(
        ImageProcessor(size_px=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), image, train, seeded()
    )
    torch.testing.assert_close(pixels * 255, torch.from_numpy(np.array(image)).permute(2, 0, 1).float())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(50, 83), (83, 50), (20, 20), (9, 31), (1, 1), (32, 77)])
def test_testing_equals_torchvisions_resize_and_centre_crop(height, width, interpolation):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    image = noise(height, width)
    mode = transforms.InterpolationMode(interpolation)
    expected = transforms.CenterCrop(32)(transforms.Resize(32, interpolation=mode, antialias=True)(image))
    expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    processor = ImageProcessor(size_px=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=interpolation)
    pixels = finished_sample(processor, image, False, seeded())
    torch.testing.assert_close(pixels * 255, expected.float())


@pytest.mark.parametrize(("height", "width"), [(3, 20_000), (20_000, 3)])
def test_very_long_pictures_cost_no_memory_and_keep_their_centre(height, width):
    image = gradient(height, width)
    pixels = finished_sample(
        ImageProcessor(size_px=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), image, False, seeded()
    )
    along = pixels[1 if width > height else 0]
    assert pixels.shape == (3, 224, 224)
    assert along.min() > 0.49
    assert along.max() < 0.51


def test_the_same_generator_gives_the_same_crop_and_another_another():
    processor, image = ImageProcessor(size_px=24, train_scale=(0.3, 1.0), horizontal_flip=True), noise(60, 40)
    first, again, other = (finished_sample(processor, image, True, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_preprocessing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    ImageProcessor(size_px=24, train_scale=(0.3, 1.0), horizontal_flip=True).preprocess(noise(60, 40), True, seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_random_crops_keep_the_share_of_the_area_they_should():
    processor = ImageProcessor(size_px=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), train_scale=(0.25, 0.5))
    image, shares, centres = gradient(200, 200), [], []
    generator = seeded()
    for _ in range(200):
        pixels = finished_sample(processor, image, True, generator)
        height, width = (pixels[c].max() - pixels[c].min() for c in (0, 1))
        shares.append(float(height * width) * (32 / 31) ** 2)
        centres.append([float(pixels[c].mean()) for c in (0, 1)])
    assert 0.22 < min(shares) < 0.28
    assert 0.46 < max(shares) < 0.53
    assert np.abs(np.mean(centres, axis=0) - 0.5).max() < 0.03
    assert np.std(centres, axis=0).min() > 0.08


def test_random_crops_of_pictures_too_long_for_any_take_the_centre():
    processor = ImageProcessor(size_px=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), train_scale=(0.9, 1.0))
    pixels = finished_sample(processor, gradient(10, 400), True, seeded())
    assert abs(float(pixels[1].mean()) - 0.5) < 0.02


def test_half_of_the_training_samples_are_mirrored_and_no_test_sample():
    processor, image = ImageProcessor(size_px=8, horizontal_flip=True), noise(8, 8)
    straight = finished_sample(ImageProcessor(size_px=8), image, True, seeded())
    generator = seeded()
    samples = [finished_sample(processor, image, True, generator) for _ in range(200)]
    mirrored = [torch.equal(sample, straight.flip(2)) for sample in samples]
    assert all(flip or torch.equal(sample, straight) for flip, sample in zip(mirrored, samples, strict=True))
    assert 75 < sum(mirrored) < 125
    assert torch.equal(finished_sample(processor, image, False, generator), straight)


def test_collate_stacks_and_thumbnails_are_small_copies():
    processor = ImageProcessor(size_px=8)
    sample = processor.preprocess(noise(9, 9), False, seeded())
    assert processor.collate([sample, sample])["pixels"].shape == (2, 3, 8, 8)
    image = noise(400, 800)
    assert processor.thumbnail(image).size == (160, 80)
    assert image.size == (800, 400)
    assert processor.thumbnail(noise(20, 30)).size == (30, 20)


def test_rendered_scenes_decode_to_their_front_view():
    processor, scene = ImageProcessor(scene_size_px=64), draw_scene(0, "train", 3)
    data = processor.render(scene)
    assert data == processor.render(scene)
    assert data[:3] == b"\xff\xd8\xff"
    difference = np.asarray(processor.decode(data), float) - front_view(scene, 0.5, 64)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_px": 0}, "size_px is 0"),
        ({"interpolation": "nearest"}, "bilinear, bicubic"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0"),
        ({"crop_pct": 1.1}, "crop_pct is 1.1"),
        ({"crop_mode": "border"}, "crop_mode is 'border'.*center, squash"),
        ({"train_scale": (0.5, 1.5)}, "train_scale"),
        ({"train_scale": (0.0, 1.0)}, "train_scale"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (0.5,)}, "mean"),
    ],
)
def test_impossible_settings_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**settings)


def test_lists_from_yaml_are_accepted():
    assert ImageProcessor(mean=[0.1, 0.2, 0.3], train_scale=[1.0, 1.0]) == ImageProcessor(mean=(0.1, 0.2, 0.3))


def photograph() -> Image.Image:
    """A portrait that matplotlib brings, cut to an odd size."""
    cbook = pytest.importorskip("matplotlib.cbook")
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return image.convert("RGB").crop((3, 5, 450, 588))


CENTER = (
    "vit_base_patch32_clip_224",
    "vit_base_patch16_siglip_224",
    "eva02_base_patch14_224",
    "convnext_tiny",
    "mixer_b16_224.goog_in21k",  # another crop_pct and mean
)
SQUASH = ("convnext_tiny.fb_in22k_ft_in1k_384",)


@pytest.mark.parametrize(
    ("name", "turned"),
    list(itertools.product((*CENTER, *SQUASH), (False, True))),
)
def test_a_processor_of_timm_prepares_exactly_as_timm_does(name, turned):
    data = pytest.importorskip("timm.data")
    timm = pytest.importorskip("timm")
    config = data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    image = photograph().rotate(90, expand=True) if turned else photograph()
    expected = data.create_transform(**config, is_training=False)(image)
    processor = timm_processor(name)
    pixels = finished_sample(processor, image, False, seeded())
    assert pixels.shape == expected.shape
    levels = ((pixels - expected) * torch.tensor(processor.std)[:, None, None] * 255).abs()
    assert levels.max() < 1e-3


def test_a_picture_of_the_right_size_is_still_cropped_by_crop_pct():
    processor = ImageProcessor(size_px=16, crop_pct=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = finished_sample(processor, gradient(16, 16), False, seeded())
    assert pixels.shape == (3, 16, 16)
    assert 0.2 < pixels[0].min() < 0.3
    assert 0.65 < pixels[0].max() < 0.75


def test_settings_go_before_what_timm_says_and_no_model_is_built(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr("timm.create_model", None)
    processor = timm_processor("vit_base_patch16_siglip_224", size_px=96, crop_pct=1.0, horizontal_flip=True)
    siglip = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_mode": "center"}
    assert processor == ImageProcessor(size_px=96, crop_pct=1.0, horizontal_flip=True, **siglip)
    assert timm_processor("vit_base_patch16_siglip_224").crop_pct == 0.9
    assert pickle.loads(pickle.dumps(processor)) == processor


def test_a_processor_of_timm_that_cannot_be_says_so(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"does not know size_pixels; it takes name, size_px, mean"):
        timm_processor("convnext_tiny", size_pixels=3)
    with pytest.raises(ValueError, match=r"no model 'convnext_tinny'.*convnext_tiny"):
        timm_processor("convnext_tinny")
    wide = timm.get_pretrained_cfg("convnext_tiny")
    monkeypatch.setattr(wide, "input_size", (3, 224, 448))
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: wide)
    with pytest.raises(ValueError, match=r"224 x 448 px, samples are square; set size_px"):
        timm_processor("convnext_tiny")
    assert timm_processor("convnext_tiny", size_px=224).size_px == 224
