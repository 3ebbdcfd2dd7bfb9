"""Your own data: every line is an item or a problem with a reason; splits and modalities as said."""

import json
import re
from pathlib import Path

import pytest
from number_files import PROCESSORS, Numbers

from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.sample import Problem
from multicoca.data.sources import Folder
from multicoca.data.splits import training_items


def write(folder: Path, lines: list) -> Path:
    for line in lines:
        if isinstance(line, dict) and "file_name" in line and line.pop("exists", True):
            (folder / line["file_name"]).write_text(line.pop("content", "1"))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_bytes(text.encode(errors="surrogateescape"))
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
        ({"file_name": "x" * 300 + ".num", "text": "a", "exists": False}, "cannot be found: .*name too long"),
        ({"file_name": "x\0.num", "text": "a", "exists": False}, "file_name holds a null byte"),
        ({"file_name": "folder.num", "text": "a", "exists": False}, "it is a folder"),
        ({"file_name": "x.xyz", "text": "a"}, "suffix '.xyz' is unknown; readable suffixes: .let, .num"),
        ({"file_name": "x.num", "text": "  "}, "no caption"),
        ({"file_name": "x.num", "text": 5}, "no caption"),
        ({"file_name": "x.num", "text": "a", "modality": "sound"}, "modality 'sound' is not among numbers, letters"),
        ({"text": "a"}, r"it names no file; its fields are \['text'\], expected one of file_name, filepath"),
        ("{broken", "not a JSON object"),
        ('{"file_name": "good.num", "key": "b", "text": "caf\udce9"}', "not UTF-8: .* byte 0xe9 in position 50"),
        ("caf\udce9", "not UTF-8"),
        ({"file_name": "x.num", "text": "a", "key": "good.num"}, "its key 'good.num' occurs twice, first in line 1;"),
    ],
)
def test_each_unusable_line_is_a_problem_with_its_reason(tmp_path, line, reason):
    (tmp_path / "folder.num").mkdir()
    listing = Folder(write(tmp_path, [{"file_name": "good.num", "text": "a"}, line]), 0.0).list_items(PROCESSORS, 0)
    assert len(listing.of("train")["numbers"]) == 1
    assert len(listing.problems) == 1
    assert re.search(rf"{reason}.* \(metadata.jsonl, line 2\)$", listing.problems[0].reason)
    assert sum(listing.listed["train"].values()) == 2
    name = line.get("file_name") if isinstance(line, dict) else "good.num" if "good" in line else None
    name = None if name == "x\0.num" else name  # it can be the name of no file
    assert listing.problems[0].file == str(tmp_path / (name or "metadata.jsonl"))


class OtherNumbers(Numbers):
    """A second modality that reads the same files."""


def test_of_two_modalities_that_read_a_suffix_the_line_names_one_or_is_a_problem(tmp_path):
    lines = [
        {"file_name": "a.num", "text": "one", "modality": "others"},
        {"file_name": "b.num", "text": "two", "modality": "numbers"},
        {"file_name": "c.num", "text": "three"},
        {"file_name": "d.let", "text": "four"},
    ]
    processors = {**PROCESSORS, "others": OtherNumbers()}
    listing = Folder(write(tmp_path, lines), 0.0).list_items(processors, 0)
    keys = {modality: [item.key for item in items] for modality, items in listing.of("train").items()}
    assert keys == {"others": ["a.num"], "numbers": ["b.num"], "letters": ["d.let"]}
    (problem,) = listing.problems
    assert "its suffix '.num' is read by numbers and others; say which by \"modality\"" in problem.reason
    with pytest.raises(ValueError, match=r"1 items can be read by several.*c\.num: its suffix.*by numbers and others"):
        training_items(listing, ["numbers", "others", "letters"])
    told = Folder(write(tmp_path, [*lines[:2], lines[3]]), 0.0).list_items(processors, 0)
    assert set(training_items(told, ["numbers", "others", "letters"])) == {"numbers", "others", "letters"}
    with pytest.raises(ValueError, match="no training items for the modality 'numbers'.*is read by numbers and others"):
        training_items(Folder(write(tmp_path, [lines[2]]), 0.0).list_items(processors, 0), ["numbers"])


def test_an_unusable_line_counts_for_the_modality_that_it_names(tmp_path):
    lines = [{"file_name": "a.num", "text": "a"}] + [
        {"file_name": "gone.num", "text": "a", "modality": name, "key": name, "exists": False}
        for name in ("letters", "sound")
    ]
    listing = Folder(write(tmp_path, lines), 0.0).list_items(PROCESSORS, 0)
    assert listing.listed == {"train": {"numbers": 1, "letters": 1, "sound": 1}}
    assert [problem.modality for problem in listing.problems] == ["letters", "sound"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\na.num,café\n".encode("latin-1"), "not a CSV file in UTF-8: .*0xe9.*; save it as one"),
        (b"name,text\na.num,a\n", r"the columns \['name', 'text'\]; expected at least file_name and text"),
        (b"", r"the columns \[\]"),
        (b"file_name,text,Text\na.num,a,b\n", "has two columns of the name text; rename one"),
    ],
)
def test_a_csv_manifest_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.csv .*{message}"):
        Folder(tmp_path / "list.csv").list_items(PROCESSORS, 0)


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


def test_the_ledger_names_each_file_once_also_after_a_restart(tmp_path):
    file = tmp_path / "ledger.jsonl"
    problem = Problem("k", "f", "why", "train")
    assert Ledger(file).add([problem, problem]) == [problem]
    restarted = Ledger(file)
    assert restarted.add([problem]) == []
    assert [json.loads(line)["reason"] for line in file.read_text().splitlines()] == ["why"]


def test_a_problem_can_be_printed_whatever_a_file_is_called(tmp_path):
    problem = Problem("caf\udce9", "\ud800", "a\udcff", "\ud800", "\udce9")
    assert (problem.key, problem.file, problem.reason) == ("caf\\xe9", "\\ud800", "a\\xff")
    (problem.split + problem.modality).encode()
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (found,) = (
        Folder(write(folder, [{"file_name": "x.num", "text": "a", "exists": False}])).list_items(PROCESSORS, 0).problems
    )
    assert found.file == f"{tmp_path}/caf\\xe9/x.num"


def test_too_many_broken_files_stop_the_run(tmp_path):
    share = BrokenShare({"numbers": 10}, 0.2, tmp_path / "ledger.jsonl")
    share.add("numbers", ["a", "b"])
    share.add("numbers", ["a"])
    with pytest.raises(ValueError, match="3 of 10 numbers training items"):
        share.add("numbers", ["c"])
