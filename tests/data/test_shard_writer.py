"""Shards hold nothing that their source does not, whatever a manifest names, and names of any kind end no command."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from multicoca.cli.main import main

SECRET = b"a key that nobody else may have"


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder whose manifest names files of its own and files elsewhere, by all ways that lead there."""
    secrets, folder = tmp_path / "secrets", tmp_path / "data"
    secrets.mkdir()
    (folder / "sub").mkdir(parents=True)
    for name in ("absolute.jpg", "dots.jpg", "linked.jpg"):
        (secrets / name).write_bytes(SECRET)
    (folder / "inside.jpg").write_bytes(b"inside")
    (folder / "sub" / "up.jpg").symlink_to("../inside.jpg")
    (folder / "link.jpg").symlink_to(secrets / "linked.jpg")
    (folder / "linked_folder").symlink_to(secrets)
    names = ["inside.jpg", "sub/up.jpg", "sub/../inside.jpg", str(secrets / "absolute.jpg"), "../secrets/dots.jpg",
             "link.jpg", "linked_folder/linked.jpg"]  # fmt: skip
    lines = [
        {"file_name": name, "key": str(number), "text": "a", "split": "train"} for number, name in enumerate(names)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def shard(source: Path | str, out: Path, *more: str) -> int:
    return main(["data", "shard", str(out), "data=folder", f"data.root={source}", "modality=[image]", *more])


def members(out: Path) -> list[bytes]:
    found = []
    for file in sorted(out.glob("*.tar")):
        with tarfile.open(file) as tar:
            found += [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")]
    return found


def test_nothing_from_outside_of_the_root_is_copied_unless_asked_for(own, tmp_path, capsys):
    assert shard(own, tmp_path / "shards") == 0
    assert members(tmp_path / "shards") == [b"inside"] * 3
    output = capsys.readouterr().out
    assert "3 items in 1 shards" in output
    assert "4 items cannot be used and were left out" in output
    assert "4 of them lie outside of data.root (by .., an absolute path or a link); --outside copies them" in output
    ledger = [json.loads(line) for line in (tmp_path / "shards" / "ledger.jsonl").read_text().splitlines()]
    assert [line["key"] for line in ledger] == ["3", "4", "5", "6"]
    for line in ledger:
        assert "it lies outside of data.root, at " in line["reason"]
        assert "--outside copies such files" in line["reason"]
    assert shard(own, tmp_path / "all", "--outside") == 0
    assert members(tmp_path / "all") == [b"inside"] * 3 + [SECRET] * 4
    assert "lie outside" not in capsys.readouterr().out


def test_a_root_that_is_a_link_or_a_manifest_is_itself(own, tmp_path):
    (tmp_path / "link").symlink_to(own)
    for number, root in enumerate([tmp_path / "link", own / "metadata.jsonl"]):
        assert shard(root, tmp_path / f"shards{number}") == 0
        assert members(tmp_path / f"shards{number}") == [b"inside"] * 3


def test_each_source_of_several_has_its_own_root(own, tmp_path):
    sources = [
        f"+data.source.sources.{name}={{_target_: multicoca.data.sources.Folder, root: {root}}}"
        for name, root in {"own": own, "shapes": own / "metadata.jsonl"}.items()
    ]
    assert main(["data", "shard", str(tmp_path / "shards"), "data=together", "modality=[image]", *sources]) == 0
    assert members(tmp_path / "shards") == [b"inside"] * 6


def test_shards_half_written_by_a_killed_process_are_removed_and_nothing_else(own, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    left = [out / f".train-{number:06d}.tar.{2**22 + 1}.part" for number in (0, 7)]
    others = [
        out / f".my-000000.tar.{2**22 + 1}.part",
        out / "notes.part",
        out / f".train-000001.tar.{os.getppid()}.part",
    ]
    for file in (*left, *others):
        file.write_text("half")
    assert shard(own, out) == 0
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in others)


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_read(own, tmp_path, capsys, monkeypatch):
    def unread(*arguments):
        raise AssertionError("it was read first")

    monkeypatch.setattr("multicoca.cli.data.list_items", unread)
    monkeypatch.setattr("multicoca.cli.convert._find_weights", unread)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    for command in (
        ["data", "shard", str(tmp_path / "new"), "data=folder", f"data.root={own}"],
        ["data", "verify", "--out", str(tmp_path / "found.json"), "data=folder", f"data.root={own}"],
        ["convert", "open_clip", "weights.bin", "--out", str(tmp_path / "model")],
        ["export", "open_clip", "nowhere", "--out", str(tmp_path / "back.pt")],
    ):
        assert main(command) == 2
        assert f"no permission for {tmp_path} (Permission denied); change the permissions" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="names of Windows are Unicode")
def test_names_that_are_no_text_end_neither_shard_nor_verify(own, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[2J"))
    own.rename(folder)
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "gone\\u001b[2J\\n.jpg", "text": "a", "split": "train"}')
        file.write('\n{"file_name": "inside.jpg", "key": "half", "text": "half \\ud83d", "split": "train"}')
    root = os.path.relpath(folder)
    quoted = f"'{root}'"
    assert shard(quoted, tmp_path / "shards") == 0
    assert members(tmp_path / "shards") == [b"inside"] * 3
    arguments = ["data=folder", f"data.root={quoted}", "modality=[image]", "--workers", "0"]
    capsys.readouterr()
    assert main(["data", "verify", *arguments, "--out", str(tmp_path / "found.json")]) == 1
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert r"gone\x1b[2J\n.jpg: the file does not exist" in output
    assert r"the lone surrogate \ud83d" in output
    json.loads((tmp_path / "found.json").read_text())
