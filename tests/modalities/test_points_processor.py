"""The processor: exact axes, units and normalisation, subsets, padding, thumbnails, rendered scenes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from multicoca_points import PointCloud, PointEncoder, PointsAugmentation, PointsProcessor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from multicoca.data.shapes import draw_scene
from multicoca.data.shapes.geometry import surface_points
from multicoca.modality import Processor, SceneRenderer, TensorBoardViewer, UnreadableFileError

CORNERS = np.array([[1, 2, 3], [-1, 0, 4], [5, 6, 7]], dtype=np.float32)


def cloud_of(count: int, seed: int = 0, colored: bool = True) -> PointCloud:
    rng = np.random.default_rng(seed)
    colors = rng.random((count, 3), dtype=np.float32) if colored else None
    return PointCloud(rng.normal(size=(count, 3)).astype(np.float32), colors)


def sample_of(processor: PointsProcessor, cloud: PointCloud, train: bool = False, seed: int = 0) -> dict:
    return processor.preprocess(cloud, train, torch.Generator().manual_seed(seed))


def test_it_keeps_both_protocols():
    assert isinstance(PointsProcessor(), Processor)
    assert isinstance(PointsProcessor(), SceneRenderer)
    assert isinstance(PointsProcessor(), TensorBoardViewer)


@pytest.mark.parametrize(
    ("up_axis", "expected"),
    [("z", [1, 2, 3]), ("y", [1, -3, 2]), ("x", [-3, 2, 1])],
)
def test_the_up_axis_becomes_z_by_a_rotation(up_axis, expected):
    processor = PointsProcessor(up_axis=up_axis, normalize="none")
    turned = sample_of(processor, PointCloud(CORNERS))["xyz"].numpy()
    np.testing.assert_array_equal(turned[0], expected)
    np.testing.assert_array_equal(turned[:, 2], CORNERS[:, "xyz".index(up_axis)])
    assert np.linalg.det(turned) == pytest.approx(np.linalg.det(CORNERS), rel=1e-5)  # no mirror image


@pytest.mark.parametrize(("unit", "factor"), [("m", 1), ("cm", 0.01), ("mm", 0.001), ("ft", 0.3048), ("in", 0.0254)])
def test_units_become_metres(unit, factor):
    scaled = sample_of(PointsProcessor(unit=unit, normalize="none"), PointCloud(CORNERS))["xyz"]
    np.testing.assert_allclose(scaled, CORNERS * factor, rtol=1e-6)


def test_normalizations_have_exact_values():
    cloud = PointCloud(np.array([[0, 0, 0], [4, 0, 0], [2, 6, 0]], dtype=np.float32))  # centroid (2, 2, 0)
    centered = np.array([[-2, -2, 0], [2, -2, 0], [0, 4, 0]])
    assert sample_of(PointsProcessor(normalize="none"), cloud)["xyz"].tolist() == cloud.xyz.tolist()
    np.testing.assert_allclose(sample_of(PointsProcessor(normalize="center"), cloud)["xyz"], centered, atol=1e-6)
    sphere = sample_of(PointsProcessor(normalize="unit_sphere"), cloud)["xyz"]
    np.testing.assert_allclose(sphere, centered / 4, atol=1e-6)


def test_normalization_uses_all_points_and_survives_large_coordinates():
    cloud = cloud_of(500)
    far = PointCloud(cloud.xyz + np.float32(4096), cloud.rgb)
    whole = sample_of(PointsProcessor(num_points=500), far)["xyz"]
    assert whole.mean(dim=0).abs().max() < 1e-4
    assert whole.norm(dim=1).max().item() == pytest.approx(1, abs=1e-6)
    part = sample_of(PointsProcessor(num_points=20), far)["xyz"]
    assert all((whole == row).all(dim=1).any() for row in part)


def test_one_point_lands_at_the_origin():
    assert sample_of(PointsProcessor(), PointCloud(CORNERS[:1]))["xyz"].tolist() == [[0, 0, 0]]


def test_missing_colors_become_the_default():
    assert (sample_of(PointsProcessor(), cloud_of(5, colored=False))["rgb"] == 0.4).all()
    rgb = np.array([[1, 0, 0], [np.nan] * 3, [0, 1, 0]], dtype=np.float32)
    mixed = sample_of(PointsProcessor(color_default=0.25), PointCloud(CORNERS, rgb))["rgb"]
    assert mixed.tolist() == [[1, 0, 0], [0.25, 0.25, 0.25], [0, 1, 0]]


def test_small_clouds_are_kept_in_order():
    cloud = cloud_of(30)
    for train in (False, True):
        sample = sample_of(PointsProcessor(num_points=30, normalize="none"), cloud, train)
        np.testing.assert_array_equal(sample["xyz"], cloud.xyz)
        np.testing.assert_array_equal(sample["rgb"], cloud.rgb)


@pytest.mark.parametrize("train", [False, True])
def test_subsets_hold_distinct_points_with_their_own_colors(train):
    cloud = cloud_of(300)
    sample = sample_of(PointsProcessor(num_points=100, normalize="none"), cloud, train)
    rows = {tuple(xyz): tuple(rgb) for xyz, rgb in zip(cloud.xyz.tolist(), cloud.rgb.tolist(), strict=True)}
    chosen = [tuple(row) for row in sample["xyz"].tolist()]
    assert len(set(chosen)) == 100
    assert [rows[row] for row in chosen] == [tuple(row) for row in sample["rgb"].tolist()]


def test_evaluation_repeats_and_ignores_the_generator():
    processor, cloud = PointsProcessor(num_points=50), cloud_of(300)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    first = processor.preprocess(cloud, False, generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(first["xyz"], sample_of(processor, cloud, seed=9)["xyz"])
    assert not torch.equal(first["xyz"], sample_of(PointsProcessor(num_points=50, surface_seed=1), cloud)["xyz"])


def test_training_follows_the_generator():
    augmentation = PointsAugmentation(rotation_degrees=180.0, scale=(0.8, 1.2), jitter=0.01, color_drop=0.5)
    processor, cloud = PointsProcessor(num_points=50, augmentation=augmentation), cloud_of(300)
    samples = [sample_of(processor, cloud, train=True, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(samples[0]["xyz"], samples[1]["xyz"])
    assert torch.equal(samples[0]["rgb"], samples[1]["rgb"])
    assert not torch.equal(samples[0]["xyz"], samples[2]["xyz"])


def test_training_draws_its_subset_from_the_generator():
    processor, cloud = PointsProcessor(num_points=50), cloud_of(300)
    subsets = [sample_of(processor, cloud, train=True, seed=seed)["xyz"] for seed in (1, 1, 2)]
    assert torch.equal(subsets[0], subsets[1])
    assert not torch.equal(subsets[0], subsets[2])


def test_each_augmentation_does_what_it_says():
    cloud = cloud_of(40)
    plain = sample_of(PointsProcessor(), cloud)

    def augmented(**settings: object) -> dict:
        return sample_of(PointsProcessor(augmentation=PointsAugmentation(**settings)), cloud, train=True, seed=3)

    turned = augmented(rotation_degrees=180.0)["xyz"]
    torch.testing.assert_close(turned[:, 2], plain["xyz"][:, 2])
    torch.testing.assert_close(turned.norm(dim=1), plain["xyz"].norm(dim=1))
    assert not torch.allclose(turned, plain["xyz"])
    torch.testing.assert_close(augmented(scale=(2.0, 2.0))["xyz"], 2 * plain["xyz"])
    noise = augmented(jitter=0.01)["xyz"] - plain["xyz"]
    assert 0.005 < noise.std() < 0.02
    assert (augmented(color_drop=1.0)["rgb"] == 0.4).all()
    assert torch.equal(augmented()["xyz"], plain["xyz"])


def test_clouds_of_one_size_have_no_mask_unless_points_coincide():
    processor = PointsProcessor()
    samples = [sample_of(processor, cloud_of(5)) for _ in range(2)]
    assert list(processor.collate(samples)) == ["xyz", "rgb"]
    samples[1]["xyz"][0], samples[1]["xyz"][3] = torch.tensor([0.0, 1, 2]), torch.tensor([-0.0, 1, 2])
    assert processor.collate(samples)["mask"].all()


def test_collate_pads_with_a_mask():
    processor = PointsProcessor()
    samples = [sample_of(processor, cloud_of(count)) for count in (3, 5)]
    inputs = processor.collate(samples)
    assert inputs["mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    for key in ("xyz", "rgb"):
        assert inputs[key].shape == (2, 5, 3)
        assert inputs[key].dtype == torch.float32
        assert torch.equal(inputs[key][0, :3], samples[0][key])
        assert torch.equal(inputs[key][1], samples[1][key])


@pytest.mark.parametrize("index", range(4))
def test_rendered_scenes_are_read_back(tmp_path, index):
    scene = draw_scene(0, "train", index)
    processor = PointsProcessor(normalize="none", scene_points=300)
    xyz, rgb = surface_points(scene, 300)
    path = tmp_path / f"scene{processor.scene_suffix}"
    path.write_bytes(processor.render(scene))
    sample = sample_of(processor, processor.decode(path))
    np.testing.assert_array_equal(sample["xyz"], xyz)
    np.testing.assert_allclose(sample["rgb"], rgb, atol=0.51 / 255)
    assert processor.render(scene) == path.read_bytes()


def test_it_is_picklable():
    processor = PointsProcessor(num_points=20, up_axis="y", augmentation=PointsAugmentation(jitter=0.1))
    copy = pickle.loads(pickle.dumps(processor))
    assert vars(copy) == vars(processor)
    assert torch.equal(sample_of(copy, cloud_of(90))["xyz"], sample_of(processor, cloud_of(90))["xyz"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"up_axis": "w"}, "one of x, y, z"),
        ({"unit": "km"}, "one of m, cm, mm, ft, in"),
        ({"normalize": "box"}, "one of unit_sphere, center, none"),
        ({"num_points": 0}, "num_points is 0"),
        ({"color_default": 102.0}, r"lie in \[0, 1\]"),
    ],
)
def test_wrong_settings_list_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        PointsProcessor(**settings)


@pytest.mark.parametrize("settings", [{"scale": (1.2, 0.8)}, {"jitter": -1.0}, {"rotation_degrees": 270.0}])
def test_wrong_augmentations_are_refused(settings):
    with pytest.raises(ValueError, match="must"):
        PointsAugmentation(**settings)


def _picture(xyz: list, rgb: list, **settings: object) -> np.ndarray:
    cloud = PointCloud(np.array(xyz, dtype=np.float32), np.array(rgb, dtype=np.float32))
    image = PointsProcessor(**settings).thumbnail(cloud)
    assert (image.mode, image.size) == ("RGB", (160, 160))
    return np.asarray(image).astype(int)


def _led_by(picture: np.ndarray, channel: int) -> np.ndarray:
    """Returns the (row, column) of the pixels in which one channel leads clearly."""
    others = np.delete(picture, channel, axis=2).max(axis=2)
    return np.argwhere(picture[..., channel] - others > 80)


def _where(picture: np.ndarray, channel: int) -> np.ndarray:
    return _led_by(picture, channel).mean(axis=0)


@pytest.mark.parametrize(("up_axis", "above"), [("z", [0, 0, 0.8]), ("y", [0, 0.8, 0]), ("x", [0.8, 0, 0])])
def test_thumbnails_have_up_at_the_top(up_axis, above):
    below = [-value for value in above]
    picture = _picture([above, below], [[1, 0, 0], [0, 0, 1]], up_axis=up_axis, thumbnail_extent=1.0)
    assert _where(picture, 0)[0] < _where(picture, 2)[0] - 40


def test_thumbnails_have_right_at_the_right_and_near_before_far():
    sides = _picture([[0.8, 0, 0], [-0.8, 0, 0]], [[1, 0, 0], [0, 0, 1]], thumbnail_extent=1.0)
    assert _where(sides, 0)[1] > _where(sides, 2)[1] + 40


def test_thumbnails_show_the_nearer_of_two_points():
    azimuth, elevation = math.radians(-28), math.radians(24)  # along the camera's axis one point hides the other
    flat = math.cos(elevation)
    away = np.array([math.sin(azimuth) * flat, math.cos(azimuth) * flat, -math.sin(elevation)])
    for near, far in ((0, 2), (2, 0)):
        colors = np.eye(3)[[near, far]].tolist()
        picture = _picture([(-0.5 * away).tolist(), (0.5 * away).tolist()], colors, thumbnail_extent=1.0)
        assert len(_led_by(picture, near)) > 4 * len(_led_by(picture, far))


def test_thumbnails_of_one_point_and_of_many_are_drawn():
    assert _picture([[3, 3, 3]], [[1, 0, 0]]).std() > 0
    assert np.asarray(PointsProcessor().thumbnail(cloud_of(100_000))).std() > 20


def test_tensorboard_gets_the_cloud_with_y_up(tmp_path):
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    with SummaryWriter(tmp_path) as writer:
        PointsProcessor(normalize="none").show(writer, "cloud", PointCloud(CORNERS, colors), 3)
    log = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    shown = {tag: make_ndarray(log.Tensors(tag)[0].tensor_proto) for tag in log.Tags()["tensors"]}
    np.testing.assert_array_equal(shown["cloud_VERTEX"][0], CORNERS[:, [0, 2, 1]] * [1, 1, -1])
    np.testing.assert_array_equal(shown["cloud_COLOR"][0], colors * 255)


# clouds in memory


def test_arrays_are_read_by_the_rules_for_their_files(tmp_path):
    processor, rng = PointsProcessor(), np.random.default_rng(0)
    xyz = rng.normal(size=(50, 3)) + [1e6, 0, 0]
    for number, rgb in enumerate(
        (rng.integers(0, 256, (50, 3), np.uint8), rng.random((50, 3)), rng.random((50, 3)) * 255)
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, points=xyz, colors=rgb)
        expected = processor.decode(path)
        tensors = {"points": torch.from_numpy(xyz), "colors": torch.from_numpy(rgb)}
        for value in ({"points": xyz, "colors": rgb}, tensors, expected):
            found = processor.decode(value)
            np.testing.assert_array_equal(found.xyz, expected.xyz)
            np.testing.assert_array_equal(found.rgb, expected.rgb)
            assert found.remarks == expected.remarks
    joined = np.concatenate([xyz, rgb / 255], axis=1)
    np.save(tmp_path / "joined.npy", joined)
    np.testing.assert_array_equal(processor.decode(joined).rgb, processor.decode(tmp_path / "joined.npy").rgb)
    assert processor.decode(xyz.astype(np.float32)).xyz.dtype == np.float64


def test_points_that_are_not_finite_are_dropped_in_memory_too():
    xyz = np.random.default_rng(0).normal(size=(50, 3))
    xyz[7] = np.nan
    found = PointsProcessor().decode(xyz)
    assert len(found.xyz) == 49
    assert "1 of 50 points are not finite" in found.remarks[0]
    with pytest.raises(UnreadableFileError, match="share of 0.01"):
        PointsProcessor(max_dropped_share=0.01).decode(xyz)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((9, 4)), r"its shape is \[9, 4\]; it must be \[points, 3\]"),
        (np.zeros(9), "its shape is"),
        (np.zeros((0, 3)), "it holds no points"),
        (np.zeros((9, 3), bool), "its type is bool; it must be numbers"),
        (np.full((9, 6), 1e5), "its colours go from"),
        ({"points": np.zeros((9, 3)), "xyz": np.zeros((9, 3))}, "keys 'points', 'xyz'; expected"),
        ({"colors": np.zeros((9, 3))}, "keys 'colors'; expected"),
        ({"points": [[0, 0, 0]]}, "got list; expected"),
        ("text", "got str; expected an array"),
    ],
)
def test_what_is_no_cloud_in_memory_is_refused(value, message):
    with pytest.raises(UnreadableFileError, match=message):
        PointsProcessor().decode(value)


def test_an_encoder_in_bf16_reads_coordinates_in_full_precision():
    encoder = PointEncoder(width=32, depth=1, num_heads=2, num_groups=8, group_size=4, group_widths=(8, 8, 8, 8)).eval()
    clouds = {"xyz": torch.randn(2, 64, 3) * 0.01 + 8, "rgb": torch.rand(2, 64, 3)}
    expected = encoder(clouds).values
    found = encoder.bfloat16()({"xyz": clouds["xyz"], "rgb": clouds["rgb"].bfloat16()}).values
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()
