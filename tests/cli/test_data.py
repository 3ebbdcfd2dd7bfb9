"""`multicoca data` in real processes: shards give back what was written, verify says exactly what there is, and the
index of img2dataset's and video2dataset's shards is built once and again when a shard changes.
"""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import damage
import pytest
from command import multicoca
from tars import tar_bytes, write_tar

from multicoca.build import build_processors
from multicoca.cli.compose import compose_config
from multicoca.cli.train import list_items
from multicoca.data.sample import Item
from multicoca.data.shapes.scene import draw_scene
from multicoca.data.sources import Listing
from multicoca.text.tokenizer import TextTokenizer

MODALITIES = "modality=[image,video,points]"
CONFIG = compose_config("train_shapes", [MODALITIES])
PROCESSORS = build_processors(CONFIG.modalities)
SHARD_BYTES = 40_000


def content_of(modality: str, number: int) -> bytes:
    """A real file of a scene."""
    return PROCESSORS[modality].render(draw_scene(0, "train", number))


def listing_of(*source: str) -> Listing:
    return list_items(compose_config("train_shapes", [MODALITIES, *source]), PROCESSORS)


def bytes_of(item: Item) -> bytes:
    content = item.content()
    return content if isinstance(content, bytes) else content.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def own(place) -> Path:
    """Your own data: eleven files that are whole, one that is not, eleven lines that cannot be used."""
    folder = place / "own"
    folder.mkdir()
    lines = []
    for modality, count in {"image": 6, "video": 3, "points": 3}.items():
        for number in range(count):
            name = f"{modality} {number}{PROCESSORS[modality].scene_suffix}".replace("jpg", "JPG")
            (folder / name).write_bytes(content_of(modality, number))
            texts = ["a crème brûlée", "ein \N{SNOWMAN} im Schnee", "three words more"][: 1 + number % 3]
            line = {"file_name": name, "text": texts, "split": "test" if number == 2 else "train"}
            lines.append(line | {"size": {"px": [64, number]}, "caption": "not among the captions"})
    lines[1] |= {"label": 7, "key": "a/key of/its own", "note": "half of a smiley: \ud83d"}
    (folder / lines[3]["file_name"]).write_bytes(damage.cut(content_of("image", 3)))
    lines += [{"file_name": f"gone {number}.jpg", "text": "a file that is gone"} for number in range(10)]
    lines.append({**lines[0], "file_name": lines[4]["file_name"], "key": lines[0]["file_name"]})
    manifest = [json.dumps({"split": "train", **line}) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(manifest))
    return folder


@pytest.fixture(scope="module")
def shards(place, own) -> tuple[Path, str]:
    """Shards of it, and what the command said."""
    size = f"--size-mb={SHARD_BYTES / 1e6}"
    source = ["data=folder", f"data.root={own}", MODALITIES]
    return place / "shards", multicoca(place, "data", "shard", place / "shards", size, *source)


def test_shards_are_the_source_again(own, shards):
    before = listing_of("data=folder", f"data.root={own}")
    after = listing_of("data=webdataset", f"data.root={shards[0]}")
    assert after.problems == []
    assert {split: dict.fromkeys(found) for split, found in after.splits.items()} == {
        split: dict.fromkeys(found) for split, found in before.splits.items()
    }
    for split, by_modality in before.splits.items():
        for modality, items in by_modality.items():
            for item, other in zip(items, after.of(split)[modality], strict=True):
                assert (other.key, other.texts, other.label) == (item.key, item.texts, item.label)
                assert dict(other.extra) == {name: value for name, value in item.extra.items() if name != "caption"}
                assert bytes_of(other) == bytes_of(item)
    assert {len(item.texts) for item in after.of("train")["image"]} == {1, 2, 3}


def test_a_shard_is_closed_by_the_sample_that_reaches_its_size(shards):
    files = sorted(shards[0].glob("*.tar"))
    assert [file.name for file in files] == ["test-000000.tar", *(f"train-{n:06d}.tar" for n in range(len(files) - 1))]
    assert len(files) > 2
    names = []
    for file in files:
        with tarfile.open(file) as tar:
            members = tar.getmembers()
        names += [member.name for member in members if "train" in file.name]
        assert members[-3].offset < SHARD_BYTES
        is_last = file.name in ("test-000000.tar", files[-1].name)
        assert is_last or members[-1].offset_data + members[-1].size >= SHARD_BYTES - 512
    assert [name for name in names if name.endswith("jpg")] == [f"{number:09d}.jpg" for number in range(5)]
    assert names[::3] == [f"{number:09d}.{name.partition('.')[2]}" for number, name in enumerate(names[::3])]


def test_what_cannot_be_written_is_named(own, shards):
    folder, output = shards
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert {line["file"]: line["reason"] for line in ledger} == {
        **{f"{own}/gone {n}.jpg": f"the file does not exist (metadata.jsonl, line {13 + n})" for n in range(10)},
        f"{own}/image 4.JPG": "its key 'image 0.JPG' occurs twice, first in line 1; keys must be unique "
        "(metadata.jsonl, line 23)",
    }
    assert f"12 items in {len(list(folder.glob('*.tar')))} shards" in output
    assert f"11 items cannot be used and were left out; {folder}/ledger.jsonl" in output


def test_a_folder_that_holds_shards_is_refused(place, own, shards):
    before = {file: file.stat().st_mtime_ns for file in shards[0].iterdir()}
    source = ["data=folder", f"data.root={own}", MODALITIES]
    message = multicoca(place, "data", "shard", shards[0], *source, status=2)
    assert f"{shards[0]} holds shards already; choose another folder or remove them" in message
    assert {file: file.stat().st_mtime_ns for file in shards[0].iterdir()} == before


def test_a_split_can_be_written_alone(place, own):
    source = ["data=folder", f"data.root={own}", MODALITIES]
    message = multicoca(place, "data", "shard", place / "tests", "--split", "exam", *source, status=2)
    assert "there is no split 'exam'; the splits are train, test" in message
    assert "3 items in 1 shards" in multicoca(place, "data", "shard", place / "tests", "--split", "test", *source)
    assert [path.name for path in (place / "tests").iterdir()] == ["test-000000.tar"]


def test_verify_says_exactly_what_there_is_and_what_is_broken(place, own):
    tokenizer = TextTokenizer.learn(["a crème brûlée"], 300, 99)
    (place / "tokenizer.json").write_text(tokenizer.to_json())
    arguments = ["--workers", "1", "--tokenizer", place / "tokenizer.json", "--out", place / "found.json"]
    output = multicoca(place, "data", "verify", "data=folder", f"data.root={own}", MODALITIES, *arguments, status=1)
    found = json.loads((place / "found.json").read_text())
    assert {split: set(by_modality) for split, by_modality in found.items()} == dict.fromkeys(
        ("train", "test"), {"image", "video", "points"}
    )
    images, listing = found["train"]["image"], listing_of("data=folder", f"data.root={own}")
    items = listing.of("train")["image"]
    sizes = {item.key: item.file.stat().st_size for item in items}
    assert (images["listed"], images["readable"]) == (16, 4)
    assert images["bytes"] == sum(sizes.values()) - sizes["image 3.JPG"]
    assert images["shapes"] == {"pixels": "3 x 64 x 64"}
    tokens = sorted(int(tokenizer([text])[1]) for item in items for text in item.texts)
    assert images["captions"] == {
        "count": 9,
        "of_an_item": [1.0, 2.0, 3.0],
        "words": [3.0, 3.0, 4.0],
        "tokens": [tokens[0], tokens[4], tokens[-1]],
    }
    assert images["repeated_keys"] == 1
    reasons = {Path(broken["file"]).name: broken["reason"] for broken in images["broken"]}
    assert reasons["gone 9.jpg"] == "the file does not exist (metadata.jsonl, line 22)"
    assert reasons["image 4.JPG"].startswith("its key 'image 0.JPG' occurs twice, first in line 1; keys must be unique")
    assert "is a broken JPEG file: image file is truncated" in reasons["image 3.JPG"]
    assert len(reasons) == len(images["broken"]) == 12
    assert list(images["broken_by_kind"].values()) == [10, 1, 1]
    assert found["train"]["points"]["shapes"] == {"xyz": "512 x 3", "rgb": "512 x 3"}
    assert found["test"]["video"]["broken"] == []
    shown = output.splitlines()
    for line in (
        f"train image: 4 of 16 can be read, {images['bytes'] / 1e6:.1f} MB", "  pixels: 3 x 64 x 64",
        f"  captions: 9; least/median/most: of an item 1/2/3, words 3/3/4, tokens {tokens[0]}/{tokens[4]}/{tokens[-1]}",
        "  keys that occur again: 1", "  10 broken: the file does not exist (metadata.jsonl, line ...)",
        "test video: 1 of 1 can be read, 0.0 MB", f"all of it: {place}/found.json",
    ):  # fmt: skip
        assert line in shown, line
    for name, count in {"gone ": 3, "image 3.JPG": 1, "image 4.JPG": 1}.items():  # three at the most of each kind
        assert sum(line.startswith(f"    {own}/{name}") for line in shown) == count


def downloaded(modality: str, numbers: range) -> list[tuple[str, bytes]]:
    """The members of a shard as img2dataset and video2dataset write it."""
    members = []
    for number in numbers:
        key, caption = f"{number:09d}", f"scene {number}"
        about = {"caption": caption, "url": f"https://example.org/{key}", "key": key, "status": "success"}
        about |= {"error_message": None, "width": 64, "height": 64, "exif": "{}", "sha256": "0" * 64}
        suffix = PROCESSORS[modality].scene_suffix
        described = json.dumps(about, indent=4).encode()
        members += [(key + suffix, content_of(modality, number)), (f"{key}.txt", caption.encode())]
        members += [(f"{key}.json", described)]
    return members


@pytest.fixture(scope="module")
def web(place) -> Path:
    """Two shards of images and one of videos, with what else the tools leave beside them."""
    for folder, modality, starts in (("images", "image", (0, 10000)), ("videos", "video", (0,))):
        (place / "web" / folder).mkdir(parents=True)
        for number, start in enumerate(starts):
            write_tar(place / "web" / folder / f"{number:05d}.tar", downloaded(modality, range(start, start + 4)))
            (place / "web" / folder / f"{number:05d}.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
            (place / "web" / folder / f"{number:05d}_stats.json").write_text('{"count": 4, "successes": 4}')
    return place / "web"


def roots(web: Path) -> list[str]:
    return ["data=webdataset", f"data.root=[{web}/images,{web}/videos]", "modality=[image,video]"]


@pytest.fixture(scope="module")
def indexed(place, web) -> str:
    """What `index` says the first time."""
    return multicoca(place, "data", "index", web / "images", f"{web}/videos/*.tar")


def test_shards_of_img2dataset_and_video2dataset_are_indexed_once(place, web, indexed):
    assert re.search(r"indexing: 100%.* 3/3 ", indexed)
    assert f"12 samples in 3 shards; indexes in {web}/images, {web}/videos" in indexed
    indexes = {file: file.stat().st_mtime_ns for file in web.glob("*/*.tar.index")}
    assert len(indexes) == 3
    again = multicoca(place, "data", "index", web / "images", f"{web}/videos/*.tar")
    assert again == f"12 samples in 3 shards; indexes in {web}/images, {web}/videos\n"
    verified = multicoca(place, "data", "verify", *roots(web), "data.source.test_share=0.3")
    assert "broken" not in verified
    assert "indexing" not in verified
    read = re.findall(r"(image|video): (\d+) of (\d+) can be read", verified)
    assert {name: sum(int(count) for own, count, _ in read if own == name) for name in ("image", "video")} == {
        "image": 8, "video": 4,
    }  # fmt: skip
    assert {file: file.stat().st_mtime_ns for file in web.glob("*/*.tar.index")} == indexes
    item = listing_of(*roots(web)[:2], "data.source.test_share=0.0").of("train")["image"][4]
    assert (item.key, item.texts, item.label) == ("000010000", ("scene 10000",), None)
    assert item.extra["url"] == "https://example.org/000010000"
    assert "caption" not in item.extra
    assert bytes_of(item) == content_of("image", 10000)


@pytest.fixture(scope="module")
def spoiled(place, web, indexed) -> tuple[Path, str]:
    """A copy of these shards and their indexes after accidents, and what `index` says then."""
    web = Path(shutil.copytree(web, place / "spoiled"))
    members = downloaded("image", range(3))
    members += [("000000007.txt", b"only words"), ("000000008.jpg", content_of("image", 8))]
    write_tar(web / "images" / "00000.tar", members)
    whole = tar_bytes(downloaded("video", range(4)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = tar.getmember("000000002.mp4").offset_data + 99
    (web / "videos" / "00000.tar").write_bytes(whole[:end])
    return web, multicoca(place, "data", "index", web / "images", web / "videos")


def test_an_index_older_than_its_shard_is_built_anew_and_says_what_is_wrong(spoiled):
    web, output = spoiled
    assert f"2 shards were changed since they were indexed and are indexed anew, first {web}/images/00000.tar" in output
    assert re.search(r"indexing: 100%.* 2/2 ", output)
    assert "12 samples in 3 shards" in output  # 3 + 2, 4, 2 + 1
    assert f"{web}/images/00000.tar::00000/000000008: it has no caption" in output
    assert f"{web}/videos/00000.tar: it is cut short inside of 000000002.mp4" in output
    assert f"{web}/videos/00000.tar::00000/000000002: the shard is cut short inside of 000000002.mp4" in output


def test_of_spoiled_shards_all_that_is_whole_is_used_and_the_rest_is_named(place, spoiled):
    web, _ = spoiled
    arguments = [*roots(web), "+data.source.split=train"]
    output = multicoca(place, "data", "verify", *arguments, "--out", place / "spoiled.json", status=1)
    assert "train image: 7 of 8 can be read" in output
    assert "train video: 2 of 3 can be read" in output
    found = json.loads((place / "spoiled.json").read_text())["train"]
    broken = {(name, own["file"]): own["reason"] for name, part in found.items() for own in part["broken"]}
    reasons = {
        ("image", f"{web}/images/00000.tar::000000008.jpg"): "it has no caption: neither a .txt nor a text",
        ("unknown", f"{web}/images/00000.tar::00000/000000007"): "it has no media file; its files: none but its desc",
        ("video", f"{web}/videos/00000.tar::000000002.mp4"): "the shard is cut short inside of 000000002.mp4",
        ("unknown", f"{web}/videos/00000.tar"): "it is cut short inside of 000000002.mp4",
    }
    assert broken.keys() == reasons.keys()
    assert all(broken[name].startswith(start) for name, start in reasons.items())
    items = listing_of(*arguments[:2], arguments[3]).of("train")["video"]
    assert [bytes_of(item) for item in items] == [content_of("video", number) for number in range(2)]
    output = multicoca(place, "data", "shard", place / "mended", *roots(web))
    assert "9 items in" in output
    ledger = [json.loads(line) for line in (place / "mended" / "ledger.jsonl").read_text().splitlines()]
    assert {line["file"] for line in ledger} == {file for _, file in reasons}
