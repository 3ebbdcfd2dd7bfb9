"""Your own data: every line is an item or a problem with a reason; splits and modalities as said."""

import json
from pathlib import Path

import pytest
import torch

from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps, evaluation_batches, training_batches
from multicoca.data.sample import Item, Problem
from multicoca.data.sources import Folder
from multicoca.modality import UnreadableFileError
from multicoca.text.tokenizer import TextTokenizer


class Numbers:
    """Reads files that hold one number."""

    suffixes = (".num",)

    def decode(self, file, suffix=""):
        try:
            return float(file.read_text())
        except ValueError as error:
            raise UnreadableFileError("it holds no number") from error

    def preprocess(self, raw, train, generator):
        jitter = torch.rand((), generator=generator) if train else torch.zeros(())
        return {"x": torch.tensor(raw) + jitter / 10}

    def collate(self, samples):
        return {"x": torch.stack([sample["x"] for sample in samples])}

    def thumbnail(self, raw):
        raise NotImplementedError


class Letters(Numbers):
    """Another modality with another suffix."""

    suffixes = (".let",)


PROCESSORS = {"numbers": Numbers(), "letters": Letters()}


def write(folder: Path, lines: list) -> Path:
    for line in lines:
        if isinstance(line, dict) and "file_name" in line and line.pop("exists", True):
            (folder / line["file_name"]).write_text(line.pop("content", "1"))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    return folder


def test_items_of_several_modalities_with_texts_labels_and_splits(tmp_path):
    lines = [
        {"file_name": "a.num", "text": ["one", "uno"], "label": 3, "split": "train", "note": 7},
        {"file_name": "b.LET", "text": " two ", "split": "test"},
    ]
    listing = Folder(write(tmp_path, lines)).list_items(PROCESSORS, 0)
    assert listing.problems == []
    item = listing.of("train")["numbers"][0]
    assert (item.key, item.texts, item.label, item.extra) == ("a.num", ("one", "uno"), "3", {"note": 7})
    assert listing.of("test")["letters"][0].texts == ("two",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"file_name": "x.num", "text": "a", "exists": False}, "does not exist"),
        ({"file_name": "x.xyz", "text": "a"}, "suffix '.xyz' is unknown; readable suffixes: .let, .num"),
        ({"file_name": "x.num", "text": "  "}, "no caption"),
        ({"file_name": "x.num", "text": 5}, "no caption"),
        ({"file_name": "x.num", "text": "a", "modality": "sound"}, "modality 'sound' is not among numbers, letters"),
        ({"text": "a"}, "no JSON object|not a JSON object"),
        ("{broken", "not a JSON object"),
        ({"file_name": "good.num", "text": "again"}, "occurs twice"),
    ],
)
def test_each_unusable_line_is_a_problem_with_its_reason(tmp_path, line, reason):
    listing = Folder(write(tmp_path, [{"file_name": "good.num", "text": "a"}, line]), 0.0).list_items(PROCESSORS, 0)
    assert len(listing.of("train")["numbers"]) == 1
    assert len(listing.problems) == 1
    import re

    assert re.search(reason, listing.problems[0].reason)
    assert sum(listing.listed["train"].values()) == 2


def test_a_csv_manifest_is_read_like_the_others(tmp_path):
    (tmp_path / "a.num").write_text("1")
    (tmp_path / "list.csv").write_text("file_name,text,label\na.num,a caption,x\n")
    listing = Folder(tmp_path / "list.csv", 0.0).list_items(PROCESSORS, 0)
    assert listing.of("train")["numbers"][0].label == "x"


def test_new_files_never_move_old_ones_between_splits(tmp_path):
    names = [f"{number}.num" for number in range(200)]
    lines = [{"file_name": name, "text": "a"} for name in names]
    before = Folder(write(tmp_path, [dict(line) for line in lines[:100]]), 0.2).list_items(PROCESSORS, 0)
    after = Folder(write(tmp_path, [dict(line) for line in lines]), 0.2).list_items(PROCESSORS, 0)
    old = {item.key for item in before.of("test")["numbers"]}
    assert old == {item.key for item in after.of("test")["numbers"]} & set(names[:100])
    assert 20 < len(after.of("test")["numbers"]) < 60


@pytest.mark.parametrize(("prepare", "message"), [(None, "does not exist"), ("empty", "no metadata.jsonl")])
def test_a_folder_without_metadata_is_an_error(tmp_path, prepare, message):
    folder = tmp_path / "data"
    if prepare:
        folder.mkdir()
    with pytest.raises(ValueError, match=message):
        Folder(folder)


def steps_of(tmp_path: Path, contents: list[str], batch_size: int, **options) -> Steps:
    items = []
    for index, content in enumerate(contents):
        file = tmp_path / f"{index}.num"
        file.write_text(content)
        items.append(Item(str(index), file, "numbers", (f"number {index}", f"the {index}")))
    tokenizer = TextTokenizer.learn([text for item in items for text in item.texts], 300, 8)
    return Steps({"numbers": items}, {"numbers": Numbers()}, tokenizer, batch_size, seed=1, **options)


def test_ranks_share_a_batch_and_workers_change_nothing(tmp_path):
    contents = [str(number) for number in range(20)]
    whole = steps_of(tmp_path, contents, 8)
    halves = [steps_of(tmp_path, contents, 8, rank=rank, world_size=2) for rank in range(2)]
    for step, from_worker in zip(range(5), training_batches(whole, 0, 5, 1), strict=True):
        batch = whole[step][0]
        assert batch.keys == from_worker[0].keys
        torch.testing.assert_close(batch.inputs["x"], from_worker[0].inputs["x"], rtol=0, atol=0)
        assert batch.keys == halves[0][step][0].keys + halves[1][step][0].keys
        torch.testing.assert_close(batch.inputs["x"], torch.cat([h[step][0].inputs["x"] for h in halves]))
        assert len(set(batch.keys)) == 8


def test_a_broken_file_is_replaced_by_a_fixed_other_one_and_named(tmp_path):
    steps = steps_of(tmp_path, ["1", "no", "3", "4"], 4)
    batch, again = steps[0][0], steps[0][0]
    assert batch.keys == again.keys
    assert "1" not in batch.keys
    assert len(batch.keys) == 4
    assert [(problem.key, problem.reason) for problem in batch.problems] == [("1", "it holds no number")]


def test_evaluation_replaces_nothing(tmp_path):
    steps = steps_of(tmp_path, ["1", "no", "3"], 3)
    ((items, inputs, problems),) = evaluation_batches(steps.items["numbers"], Numbers(), 8)
    assert [item.key for item in items] == ["0", "2"]
    assert len(inputs["x"]) == 2
    assert [problem.key for problem in problems] == ["1"]


def test_only_broken_files_are_an_error_not_a_loop(tmp_path):
    with pytest.raises(ValueError, match="in a row cannot be read; the last: it holds no number"):
        steps_of(tmp_path, ["no", "no"], 2)[0]


def test_a_batch_that_ranks_cannot_share_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="3 processes cannot share"):
        steps_of(tmp_path, ["1"] * 9, 8, rank=0, world_size=3)


def test_the_ledger_names_each_file_once_also_after_a_restart(tmp_path):
    file = tmp_path / "ledger.jsonl"
    problem = Problem("k", "f", "why", "train")
    assert Ledger(file).add([problem, problem]) == [problem]
    restarted = Ledger(file)
    assert restarted.add([problem]) == []
    assert [json.loads(line)["reason"] for line in file.read_text().splitlines()] == ["why"]


def test_too_many_broken_files_stop_the_run(tmp_path):
    share = BrokenShare({"numbers": 10}, 0.2, tmp_path / "ledger.jsonl")
    share.add("numbers", ["a", "b"])
    share.add("numbers", ["a"])
    with pytest.raises(ValueError, match="3 of 10 numbers training items"):
        share.add("numbers", ["c"])
