"""The shapes world: captions are true, judged rightly, and files are written once and checked."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from number_files import Letters, Numbers

from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.data.shapes import attribute_score, captions_of, draw_scene, valid_captions
from multicoca.data.shapes.geometry import front_view, surface_points
from multicoca.data.shapes.scene import HELD_OUT, Scene, SceneObject
from multicoca.data.shapes.source import ShapesWorld
from multicoca.data.sources import Folder
from multicoca.data.splits import left_aside
from multicoca.data.together import Together

FACTS = [frozenset(), frozenset({"motion"}), frozenset({"depth"})]
SCENES = [draw_scene(0, "train", index) for index in range(200)]


@pytest.mark.parametrize("facts", FACTS)
def test_every_listed_caption_is_valid_and_every_valid_one_scores_fully(facts):
    for scene in SCENES:
        valid = valid_captions(scene, facts)
        assert set(captions_of(scene, facts, 4)) <= valid
        for caption in sorted(valid)[::5]:
            right, total = attribute_score(caption, scene, facts)
            assert right == total, caption


def test_half_of_the_scenes_have_several_objects():
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert 0.4 < (counts[2] + counts[3]) / len(SCENES) < 0.6
    assert counts[3] > 10


def test_held_out_pairs_occur_only_in_the_composition_split():
    def pairs(scene):
        return {(target.color, target.shape) for target in scene.objects}

    assert all(not pairs(draw_scene(0, split, i)) & HELD_OUT for split in ("train", "test") for i in range(200))
    assert all(pairs(draw_scene(0, "composition", i)) & HELD_OUT for i in range(100))


RED_LEFT_OF_BLUE = Scene(
    (SceneObject("cube", "red", "large", (-0.6, 0.5, 0.0)), SceneObject("ball", "blue", "small", (0.6, -0.5, 0.1))),
    (0, "up"),
    (0, 0, 0),
)


A_TO_B = "a large red cube on the left, left of a small blue ball"
B_TO_A = "a small blue ball on the right, right of a large red cube"


@pytest.mark.parametrize(
    ("caption", "facts", "right", "total"),
    [
        (A_TO_B, set(), 8, 8),
        ("there is " + A_TO_B.replace("left of", "to the left of"), set(), 8, 8),
        (B_TO_A, set(), 8, 8),
        (B_TO_A.replace("right of", "left of"), set(), 7, 8),
        (A_TO_B.replace("left of", "above"), set(), 7, 8),
        (A_TO_B.replace("on the left", "at the top"), set(), 7, 8),
        (A_TO_B.replace("red", "green"), set(), 7, 8),
        ("a large red cube on the left", set(), 4, 8),
        ("", set(), 0, 8),
        (A_TO_B + ", and a small red ring at the top", set(), 8, 11),
        (A_TO_B.replace("cube", "cube moving up"), {"motion"}, 9, 9),
        (A_TO_B.replace("cube", "cube moving down"), {"motion"}, 8, 9),
        (A_TO_B.replace("ball", "ball moving up"), {"motion"}, 8, 9),
        (A_TO_B, {"motion"}, 8, 9),
        (A_TO_B.replace("left of", "left of and behind"), {"depth"}, 9, 9),
        (A_TO_B.replace("left of", "left of and in front of"), {"depth"}, 8, 9),
        (A_TO_B, {"depth"}, 8, 9),
    ],
)
def test_words_are_counted_as_by_hand(caption, facts, right, total):
    assert attribute_score(caption, RED_LEFT_OF_BLUE, facts) == (right, total)
    assert (caption in valid_captions(RED_LEFT_OF_BLUE, facts)) == (right == total)


def test_a_motion_shows_in_no_single_frame_but_between_them():
    moved = front_view(RED_LEFT_OF_BLUE, 0.0).astype(int), front_view(RED_LEFT_OF_BLUE, 1.0).astype(int)
    columns = [np.argwhere(picture[..., 0] - picture[..., 2] > 80)[:, 0].mean() for picture in moved]
    assert columns[0] - columns[1] > 8  # rows: up is less


def test_points_show_depth_and_height():
    xyz, rgb = surface_points(RED_LEFT_OF_BLUE, 2000)
    red = rgb[:, 0] > 0.6
    assert abs(xyz[red, 1].mean() - 0.5) < 0.02
    assert abs(xyz[~red, 1].mean() + 0.5) < 0.02
    assert abs(np.abs(xyz[red, 0] + 0.6).max() - 0.32 * 0.85) < 0.05


@pytest.fixture(scope="module")
def processors():
    return build_processors(compose_config("train_shapes", ["modality=[image]"]).modalities)


def world(root, train: int = 12) -> ShapesWorld:
    return ShapesWorld(train_items=train, test_items=4, composition_items=2, captions_per_item=3, root=root)


def test_files_are_written_once_and_mended_when_broken(tmp_path, processors):
    listing = world(tmp_path).list_items(processors, 0)
    files = [item.file for item in listing.of("train")["image"]]
    assert len(files) == 12
    stamps = [file.stat().st_mtime_ns for file in files]
    world(tmp_path).list_items(processors, 0)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    files[3].write_bytes(b"broken")
    again = world(tmp_path).list_items(processors, 0)
    assert processors["image"].decode(again.of("train")["image"][3].file).size == (64, 64)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"null\n" * 6, b'{"file_name": "a"}\n' * 6, b"[]\n" * 6])
def test_damaged_metadata_is_written_anew(tmp_path, processors, damage):
    world = ShapesWorld(6, 2, 2, 2, root=tmp_path)
    before = world.list_items({"image": processors["image"]}, 0).of("train")["image"]
    (metadata,) = tmp_path.glob("train-image-*/metadata.jsonl")
    whole = metadata.read_text()
    metadata.write_bytes(damage)
    assert world.list_items({"image": processors["image"]}, 0).of("train")["image"] == before
    assert metadata.read_text() == whole


def test_two_at_once_write_one_whole_set(tmp_path, processors):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: world(tmp_path, 40).list_items(processors, 0), range(2)))
    assert [item.file for item in found[0].of("train")["image"]] == [
        item.file for item in found[1].of("train")["image"]
    ]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_training_scenes_differ_between_modalities_and_test_scenes_do_not(tmp_path, processors):
    both = {"image": processors["image"], "other": processors["image"]}
    listing = world(tmp_path).list_items(both, 0)

    def scenes(split, name):
        return [tuple(item.extra["scene"]) for item in listing.of(split)[name]]

    assert not set(scenes("train", "image")) & set(scenes("train", "other"))
    assert scenes("test", "image") == scenes("test", "other")


def test_captions_are_sentences_of_plain_words():
    for scene in SCENES[:50]:
        for caption in captions_of(scene, frozenset({"motion"}), 4):
            assert re.fullmatch(r"[a-z ,]+", caption)


def test_modalities_that_cannot_draw_it_are_skipped_with_the_reason(tmp_path, processors):
    world = ShapesWorld(4, 2, 2, 1, root=tmp_path)
    listing = world.list_items({"numbers": Numbers(), **processors}, 0)
    assert set(listing.of("train")) == set(processors)
    assert "no `render`" in listing.skipped["numbers"]
    assert left_aside(listing, list(processors))[0].startswith("numbers is left out: its processor has no `render`")
    with pytest.raises(ValueError, match="none of numbers can draw the shapes world"):
        world.list_items({"numbers": Numbers()}, 0)


def test_of_several_sources_only_what_none_has_is_skipped(tmp_path, processors):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "1.num").write_text("1")
    (tmp_path / "own" / "metadata.jsonl").write_text('{"file_name": "1.num", "text": "one"}')
    sources = {"world": ShapesWorld(4, 2, 2, 1, root=tmp_path / "world"), "own": Folder(tmp_path / "own", 0.0)}
    others = {"numbers": Numbers(), "letters": Letters(), **processors}
    assert set(Together(sources).list_items(others, 0).skipped) == {"letters"}
