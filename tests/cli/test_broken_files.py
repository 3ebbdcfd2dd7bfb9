"""With a twentieth of all files broken, each in another way, training runs to its end, every broken file is named with
its reason, and evaluation says exactly how many of how many items it used.

A folder is read by one process with data workers, shards by two processes without; the run over shards first stops,
because it may put up with less, and then goes on.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import damage
import pytest
from command import multicoca
from multicoca_image import ImageProcessor
from multicoca_points import PointsProcessor
from multicoca_video import VideoProcessor
from tars import tar_bytes, write_tar

from multicoca.data.sample import Item
from multicoca.data.shapes.source import ShapesWorld

PROCESSORS = {"image": ImageProcessor(), "video": VideoProcessor(), "points": PointsProcessor()}
LISTED = {"image": 100, "video": 60, "points": 60}  # training items
STEPS = 7  # an epoch of the 98 usable images; 60 videos and clouds take 6
SETTINGS = [
    "modality=[image,video,points]", "data.batch_sizes={image:14,video:10,points:10}", "train.precision=fp32",
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.unimodal_layers=1", "model.multimodal_layers=1",
    "modalities.image.encoder.timm_options.depth=1", "modalities.points.encoder.depth=1", "train.checkpoint_every=1",
    "evaluation.gallery=4", "evaluation.draws=1", "evaluation.meteor=false", "evaluation.probe_items=4",
]  # fmt: skip


def missing(file, line):
    file.unlink()


def leads_nowhere(file, line):
    file.unlink()
    file.symlink_to("nowhere")


def is_a_folder(file, line):
    file.unlink()
    file.mkdir()


def has_no_caption(file, line):
    line["text"] = ["", " "]


def is_latin_1(file, line):
    line["text"] = "a caf\udce9"


def has_the_first_key(file, line):
    line["key"] = line["key"][:-6] + "000000"


LINE_REASONS = {
    missing: "the file does not exist",
    leads_nowhere: "the file does not exist",
    is_a_folder: "it is a folder",
    has_no_caption: "it has no caption",
    is_latin_1: "the line is not UTF-8",
    has_the_first_key: r"its key '\w+/000000' occurs twice",
}
IN_FOLDER = {
    ("train", "image"): [damage.noise, damage.cut, damage.huge_jpeg, missing, has_no_caption],
    ("train", "video"): [damage.without_index, damage.sound_alone, damage.without_frames],
    ("train", "points"): [damage.fewer_points, damage.no_numbers, damage.no_points],
    ("test", "image"): [damage.nothing, is_a_folder],
    ("test", "video"): [damage.wiped_frames, is_latin_1, leads_nowhere],
    ("test", "points"): [damage.ply_header, has_the_first_key],
}


def text_is_latin_1(sample):
    sample["txt"] = b"a caf\xe9"


def json_is_torn(sample):
    sample["json"] = damage.cut(sample["json"])


def text_is_missing(sample):
    sample["json"] = json.dumps({**json.loads(sample["json"]), "captions": []}).encode()
    del sample["txt"]


SAMPLE_REASONS = {
    text_is_latin_1: r"its \.txt cannot be read: 'utf-8' codec",
    json_is_torn: r"its \.json cannot be read: ",
    text_is_missing: r"it has no caption: neither a \.txt nor a text in its \.json",
}
IN_SHARDS = {  # one more image is the last of a shard that is cut short
    ("train", "image"): [damage.page, damage.cut, damage.huge_jpeg, json_is_torn],
    ("train", "video"): [damage.without_index, damage.wiped_frames, damage.without_frames],
    ("train", "points"): [damage.fewer_points, damage.no_numbers, damage.ply_header],
    ("test", "image"): [damage.nothing, damage.noise],
    ("test", "video"): [text_is_missing, text_is_latin_1],
    ("test", "points"): [damage.no_points, damage.page],
}

World = dict[tuple[str, str], list[Item]]


@dataclass
class Set:
    """Data on disk.

    Attributes:
        root: where it lies.
        broken: (split, modality, reason) of every broken file.
        tests: by modality, the keys of the test items that can be read.
        listed: by modality, the number of test items.
    """

    root: Path
    broken: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    tests: dict[str, set[str]] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)

    def add(self, split: str, modality: str, items: list[Item], damaged: dict) -> None:
        if split == "test":
            self.tests[modality] = {item.key for number, item in enumerate(items) if number not in damaged}
            self.listed[modality] = len(items)


@dataclass
class Run:
    """What a run over a set left."""

    data: Set
    folder: Path
    output: str
    steps: int

    def ledger(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("broken")


@pytest.fixture(scope="module")
def world(place) -> World:
    """Real files of scenes, by split and modality."""
    listing = ShapesWorld(max(LISTED.values()), 10, 0, 2, place / "world").list_items(PROCESSORS, 0)
    items = {("train", modality): listing.of("train")[modality][:count] for modality, count in LISTED.items()}
    return items | {("test", modality): listing.of("test")[modality] for modality in LISTED}


def damaged_numbers(kinds: list, count: int) -> dict:
    """Spreads damage over items; where there are enough the second one has it, which short evaluations see."""
    step = count // len(kinds)
    return {number * step + min(step - 1, 1): kind for number, kind in enumerate(kinds)}


def write_folder(world: World, root: Path) -> Set:
    """Writes your own data as a folder with a manifest."""
    data, lines = Set(root), []
    for (split, modality), items in world.items():
        damaged = damaged_numbers(IN_FOLDER[split, modality], len(items))
        (root / modality).mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(items):
            name, content = f"{modality}/{split}{number}{item.file.suffix}", item.file.read_bytes()
            line = {"file_name": name, "key": item.key, "text": item.texts, "split": split, **item.extra}
            (root / name).write_bytes(content)
            if (kind := damaged.get(number)) in damage.REASONS:
                (root / name).write_bytes(kind(content))
            elif kind is not None:
                kind(root / name, line)
            if kind is not None:
                data.broken[str(root / name)] = (split, modality, {**damage.REASONS, **LINE_REASONS}[kind])
            lines.append(json.dumps(line, ensure_ascii=False))
        data.add(split, modality, items, damaged)
    manifest = root / "metadata.jsonl"
    manifest.write_text("\n".join([*lines, lines[0][:50]]), encoding="utf-8", errors="surrogateescape")
    data.broken[str(manifest)] = ("train", "", "the line is not a JSON object with a file_name")
    return data


def write_shards(world: World, root: Path) -> Set:
    """Writes shards, one for each split and modality, one cut short and one that is no tar."""
    root.mkdir()
    data = Set(root)
    for (split, modality), items in world.items():
        items = items[:2] if split == "test" and modality != "image" else items  # two, of which none can be used
        damaged = damaged_numbers(IN_SHARDS[split, modality], len(items))
        shard, samples = root / f"{split}-{modality}.tar", []
        for number, item in enumerate(items):
            suffix = item.file.suffix[1:]
            about = {"key": item.key, "captions": item.texts, "split": split, **item.extra}
            sample = {suffix: item.file.read_bytes(), "txt": item.texts[0].encode(), "json": json.dumps(about).encode()}
            if (kind := damaged.get(number)) in damage.REASONS:
                sample[suffix] = kind(sample[suffix])
            elif kind is not None:
                kind(sample)
            if kind is not None:
                reason = {**damage.REASONS, **SAMPLE_REASONS}[kind]
                data.broken[f"{shard}::{number:09d}.{suffix}"] = (split, modality, reason)
            samples.append([(f"{number:09d}.{ending}", content) for ending, content in sample.items()])
        data.add(split, modality, items, damaged)
        if (split, modality) == ("train", "image"):
            _write_cut_shard(root / "cut.tar", samples.pop(), data.broken)
        write_tar(shard, [member for sample in samples for member in sample])
    (root / "page.tar").write_bytes(damage.PAGE)
    data.broken[str(root / "page.tar")] = ("", "", "it cannot be read as an uncompressed tar")
    return data


def _write_cut_shard(shard: Path, sample: list[tuple[str, bytes]], broken: dict) -> None:
    """Writes a shard that ends within the picture of its only sample."""
    shard.write_bytes(tar_bytes(sample)[: 512 + len(sample[0][1]) // 2])
    broken[f"{shard}::{sample[0][0]}"] = ("train", "image", f"the shard is cut short inside of {sample[0][0]}")
    broken[str(shard)] = ("", "", f"it is cut short inside of {sample[0][0]}")


def train(place: Path, data: Set, kind: str, steps: int, *settings: str, status: int = 0) -> Run:
    arguments = [f"data={kind}", f"data.root={data.root}", "data.source.test_share=0", f"train.steps={steps}"]
    output = multicoca(place, "train", *arguments, *SETTINGS, *settings, status=status)
    return Run(data, place / "runs" / kind, output, steps)


@pytest.fixture(scope="module")
def folder_run(place, world) -> Run:
    data = write_folder(world, place / "folder")
    return train(place, data, "folder", STEPS, "train.cpu_processes=1", "data.workers=2", "train.evaluate_every=4")


@pytest.fixture(scope="module")
def stopped(place, world) -> tuple[Run, list[dict], list[str]]:
    """A run over shards that may put up with less than there is; its ledger and its checkpoints."""
    data = write_shards(world, place / "shards")
    run = train(place, data, "webdataset", 2 * STEPS, "train.cpu_processes=2", "data.max_broken_share=0.045", status=2)
    return run, run.ledger(), sorted(path.name for path in (run.folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def shards_run(place, stopped) -> Run:
    """The same run with the share that there is, to the end of the second epoch."""
    return train(place, stopped[0].data, "webdataset", 2 * STEPS, "train.cpu_processes=2", "data.max_broken_share=0.05")


@pytest.fixture(params=["folder_run", "shards_run"])
def run(request) -> Run:
    return request.getfixturevalue(request.param)


def test_training_runs_to_its_end_and_every_broken_file_is_named_once_with_its_reason(run):
    found = Counter(modality for split, modality, _ in run.data.broken.values() if split == "train")
    assert {modality: found[modality] / count for modality, count in LISTED.items()} == dict.fromkeys(LISTED, 0.05)
    assert len({reason for *_, reason in run.data.broken.values()}) > 10
    assert (run.folder / "checkpoints" / f"step_{run.steps:08d}").is_dir()
    assert (run.folder / "report.html").is_file()
    ledger = run.ledger()
    assert Counter(line["file"] for line in ledger) == Counter(list(run.data.broken))
    for line in ledger:
        split, modality, reason = run.data.broken[line["file"]]
        assert re.search(reason, line["reason"]), line
        assert (line["split"], line["modality"]) == (split, modality), line
        assert line["key"]


def test_evaluation_says_exactly_how_many_of_how_many_items_it_used(run):
    results = json.loads((run.folder / "results.json").read_text())
    found = {modality: (own["used"], own["listed"]) for modality, own in results["modalities"].items()}
    assert found == {modality: (len(keys), run.data.listed[modality]) for modality, keys in run.data.tests.items()}
    pairs = {(one, other): len(run.data.tests[one] & run.data.tests[other]) for one, other in permutations(found, 2)}
    across = {way: own["used"] for way, own in results["across"].items()}
    assert across == {f"{one}_to_{other}": count for (one, other), count in pairs.items() if count}
    assert results["broken_items"] == len(run.data.broken)
    card = (run.folder / "model" / "README.md").read_text()
    for modality, (used, listed) in found.items():
        assert f"## {modality}: {used} of {listed} test items" in card


def test_more_broken_files_than_allowed_stop_all_processes_and_nothing_else_is_lost(stopped, shards_run):
    run, ledger, checkpoints = stopped
    message = re.search(r"(\d) of \d+ (\w+) training items cannot be used, more than the share of (.+)", run.output)
    number, modality = int(message[1]), message[2]
    assert number == {"image": 5, "video": 3, "points": 3}[modality]
    assert number == sum((line["split"], line["modality"]) == ("train", modality) for line in ledger)
    assert message[3] == (
        "0.045 that data.max_broken_share allows; runs/webdataset/ledger.jsonl names each with its reason. "
        "Raise the share, or mend the files and delete the ledger"
    )
    assert "Traceback" not in run.output
    assert shards_run.ledger()[: len(ledger)] == ledger
    assert all(re.fullmatch(r"step_\d{8}", name) for name in checkpoints)
    assert f"resuming at step {int(checkpoints[-1].removeprefix('step_'))}" in shards_run.output
