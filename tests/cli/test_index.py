"""An index loses nothing in a kill, follows its files, and touches nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from patience import DEADLINE_S
from small_models import write_model, write_scenes

from multicoca.api import MultiCoCa, load
from multicoca.cli import index as module
from multicoca.cli.index import write_index
from multicoca.cli.index_files import ABOUT, BEGUN, FILES, LOCK, PART, ROWS, SKIPPED
from multicoca.cli.main import main

WIDTH = 128


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two models and a folder of files, hidden and broken ones among them."""
    folder = tmp_path_factory.mktemp("index")
    write_model(folder / "model")
    write_model(folder / "other", seed=1)
    write_scenes(folder / "files", range(5))
    write_scenes(folder / "files" / "sub", range(2), "points")
    write_scenes(folder / "files" / ".hidden", range(2))
    (folder / "files" / ".hidden.jpg").write_bytes((folder / "files" / "image000.jpg").read_bytes())
    (folder / "files" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(place) -> MultiCoCa:
    return load(place / "model")


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """The names of the files that models are asked to embed from now on."""
    names: list[str] = []
    stream = MultiCoCa.stream

    def noted(self, files, batch_size=16):
        def each():
            for file in files:
                names.append(file.name)
                yield file

        return stream(self, each(), batch_size)

    monkeypatch.setattr(MultiCoCa, "stream", noted)
    return names


def run(place: Path, out: Path, *more: object, model: str = "model", files: Path | None = None) -> int:
    return main(["index", str(place / model), str(files or place / "files"), "--out", str(out), *map(str, more)])


def content(out: Path) -> dict[str, np.ndarray]:
    """The rows of an index by file."""
    about = json.loads((out / ABOUT).read_text())
    rows = np.fromfile(out / ROWS, np.float32).reshape(about["count"], about["width"])
    files = [json.loads(line)["file"] for line in (out / FILES).read_text().splitlines()]
    assert len(files) == len(set(files)) == len(rows)
    return dict(zip(files, rows, strict=True))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_hidden_files_and_those_of_the_index_itself_are_left_out(place, tmp_path, embedded, capsys):
    files = Path(shutil.copytree(place / "files", tmp_path / "files"))
    (files / "idx.part").mkdir()  # as an earlier version left it after a kill
    shutil.copy(files / "image000.jpg", files / "idx.part")
    for _ in range(2):
        assert run(place, files / "idx", files=files) == 0
    assert set(embedded) == {*(f"image00{n}.jpg" for n in range(5)), "points000.ply", "points001.ply", "broken.jpg"}
    assert len(content(files / "idx")) == 7
    assert {path.name for path in (files / "idx").iterdir()} == {ROWS, FILES, SKIPPED, ABOUT, LOCK}
    captured = capsys.readouterr()
    assert "7 files are in" in captured.out
    assert "indexing: 100% 8/8 file" in captured.err


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_goes(place, tmp_path, embedded, capsys):
    files = Path(shutil.copytree(place / "files", tmp_path / "files"))
    run(place, tmp_path / "idx", files=files)
    before = content(tmp_path / "idx")
    embedded.clear()
    (files / "image000.jpg").unlink()
    shutil.copy(files / "image002.jpg", files / "image001.jpg")
    os.utime(files / "image003.jpg", ns=(1, 1))  # a time that went back is a change, too
    write_scenes(files / "new", range(7, 8))
    capsys.readouterr()
    assert run(place, tmp_path / "idx", files=files) == 0
    assert sorted(embedded) == ["broken.jpg", "image001.jpg", "image003.jpg", "image007.jpg"]
    assert "7 files are in" in (said := capsys.readouterr().out)
    assert "3 new or changed, 4 as before; 1 are gone; 1 were skipped" in said
    after = content(tmp_path / "idx")
    assert before.keys() - after.keys() == {str(files / "image000.jpg")}
    assert np.allclose(after[str(files / "image001.jpg")], before[str(files / "image002.jpg")], atol=1e-5)
    run(place, tmp_path / "again", files=files)
    assert same(after, content(tmp_path / "again"))


def test_whatever_a_kill_leaves_the_next_start_gives_the_whole_index(place, model, tmp_path, embedded):
    run(place, tmp_path / "whole")
    whole, size = content(tmp_path / "whole"), 4 * WIDTH
    rows, lines = (tmp_path / "whole" / ROWS).read_bytes(), (tmp_path / "whole" / FILES).read_bytes()
    skipped = (tmp_path / "whole" / SKIPPED).read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(lines) if byte == ord("\n"))]
    for number, (row_end, line_end) in enumerate(
        [(0, 0), (1, 0), (size, 1), (size, ends[1]), (size + 7, ends[1] + 9), (size, ends[3]), (5 * size, ends[2] - 1),
         (len(rows), ends[4] - 3), (len(rows) - 1, len(lines)), (len(rows), len(lines) - 1), (len(rows), len(lines))]
    ):  # fmt: skip
        out = tmp_path / f"torn{number}"
        part = out / PART
        part.mkdir(parents=True)
        about = json.loads((tmp_path / "whole" / ABOUT).read_text())
        about.pop("count")
        (part / BEGUN).write_text(json.dumps(about))
        (part / ROWS).write_bytes(rows[:row_end])
        (part / FILES).write_bytes(lines[:line_end])
        (part / SKIPPED).write_bytes(skipped[: -1 if number % 2 else None])
        embedded.clear()
        write_index(model, str(place / "model"), [place / "files"], out, 2)
        assert same(content(out), whole), number
        kept = min(row_end // size, sum(end <= line_end for end in ends) - 1)
        assert len(embedded) == 7 - kept + number % 2, number
        assert not part.exists()
        assert (out / SKIPPED).read_bytes() == skipped


def test_rows_that_do_not_belong_to_their_lines_are_embedded_again(place, tmp_path, embedded):
    run(place, tmp_path / "idx")
    whole = content(tmp_path / "idx")
    rows = bytearray((tmp_path / "idx" / ROWS).read_bytes())
    rows[: 8 * WIDTH] = bytes(8 * WIDTH)  # zeros, as a power cut leaves them
    (tmp_path / "idx" / ROWS).write_bytes(rows)
    embedded.clear()
    run(place, tmp_path / "idx")
    assert len(embedded) == 3  # with the broken one
    assert same(content(tmp_path / "idx"), whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_while_the_new_index_takes_its_place_is_made_good(place, tmp_path, embedded, monkeypatch, capsys, moved):
    out = tmp_path / "idx"
    run(place, out, files=place / "files" / "sub")
    replace, places = Path.replace, []

    def replace_some(path, target):
        if target.parent == out:
            places.append(target)
            if len(places) > moved:
                raise Killed
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    with pytest.raises(Killed):
        run(place, out)
    monkeypatch.setattr(Path, "replace", replace)
    capsys.readouterr()
    assert main(["search", str(out), "a cube"]) == 2  # never new rows with old names
    assert f"the index {out} is not finished; run the same multicoca index command again" in capsys.readouterr().err
    embedded.clear()
    assert run(place, out) == 0
    assert set(embedded) <= {"broken.jpg"}
    run(place, tmp_path / "whole")
    assert same(content(out), content(tmp_path / "whole"))


def test_a_killed_process_is_gone_on_from(place, tmp_path, embedded):
    files = tmp_path / "many"
    files.mkdir()
    image = (place / "files" / "image000.jpg").read_bytes()
    for number in range(400):
        (files / f"{number:03d}.jpg").write_bytes(image)
    out = tmp_path / "idx"
    command = [sys.executable, "-m", "multicoca.cli.main", "index", place / "model", files, "--out", out]
    process = subprocess.Popen([*map(str, command), "--batch-size", "1"], stderr=subprocess.PIPE)
    until = time.monotonic() + DEADLINE_S
    while not ((out / PART / FILES).is_file() and (out / PART / FILES).read_bytes().count(b"\n") > 3):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (out / PART / FILES).read_bytes().count(b"\n")
    assert 3 < done < 400
    assert run(place, out, files=files) == 0
    assert len(embedded) == 400 - done
    assert len(content(out)) == 400


def test_a_second_process_is_refused_in_one_line(place, tmp_path, capsys):
    out = tmp_path / "idx"
    run(place, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != LOCK}
    capsys.readouterr()
    with FileLock(out / LOCK):
        assert run(place, out) == 2
    error = capsys.readouterr().err
    assert f"another process is writing the index {out}; wait for its end" in error
    assert error.count("\n") == 1
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != LOCK} == before


def test_another_model_is_refused_and_fresh_takes_it(place, tmp_path, capsys):
    out = tmp_path / "idx"
    run(place, out)
    before = content(out)
    assert run(place, out, model="other") == 2
    error = capsys.readouterr().err
    assert f"{out} is an index by the model {place / 'model'}, not by {place / 'other'}" in error
    assert "give another --out, or embed all files again with --fresh" in error
    assert same(content(out), before)
    assert run(place, out, "--fresh", model="other") == 0
    assert not same(content(out), before)
    assert content(out).keys() == before.keys()
    retrained = tmp_path / "retrained"
    shutil.copytree(place / "other", retrained)
    run(place, tmp_path / "of_it", model=str(retrained))
    shutil.copy(place / "model" / "model.safetensors", retrained)
    capsys.readouterr()
    assert run(place, tmp_path / "of_it", model=str(retrained)) == 2
    assert "is an index by other weights of the model" in capsys.readouterr().err


def test_a_fresh_index_takes_the_place_of_the_earlier_one_only_at_its_end(place, tmp_path, monkeypatch):
    out = tmp_path / "idx"
    run(place, out)
    before = content(out)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_append", fail)
    assert run(place, out, "--fresh") == 2
    assert same(content(out), before)


def test_files_of_others_stay_whatever_happens(place, tmp_path, capsys):
    out = tmp_path / "idx"
    run(place, out)
    (out / "notes.txt").write_text("mine")
    (out / "sub").mkdir()
    (out / "sub" / "photo.jpg").write_text("mine")
    for more in ((), ("--fresh",)):
        assert run(place, out, *more) == 0
        assert (out / "notes.txt").read_text() == (out / "sub" / "photo.jpg").read_text() == "mine"
    for folder in ("foreign", "site"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "index.json").write_text("{}")
        (tmp_path / folder / "photo.jpg").write_text("mine")
        assert run(place, tmp_path / folder, "--fresh") == 2
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"index.json", "photo.jpg"}
    assert "exists and is not an index; give another --out" in capsys.readouterr().err
    assert run(place, tmp_path / "foreign" / "photo.jpg") == 2
    assert (tmp_path / "foreign" / "photo.jpg").read_text() == "mine"


def test_nothing_is_left_where_nothing_can_be_read(place, tmp_path, capsys):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").write_text("hello")
    assert run(place, tmp_path / "idx", files=tmp_path / "files") == 2
    assert "could be read; the first: " in capsys.readouterr().err
    assert not (tmp_path / "idx").exists()
    assert run(place, tmp_path / "idx", model="nowhere/is/it") == 2
    assert not (tmp_path / "idx").exists()
    assert run(place, tmp_path / "idx", "--batch-size", 0) == 2


def test_an_index_of_the_version_before_is_read_and_brought_up_to_date(place, tmp_path, embedded, capsys):
    out = tmp_path / "idx"
    run(place, out)
    whole = content(out)
    lines = [json.loads(line) for line in (out / FILES).read_text().splitlines()]
    old = "".join(json.dumps({"file": line["file"], "modality": line["modality"]}) + "\n" for line in lines)
    (out / FILES).write_text(old)
    about = json.loads((out / ABOUT).read_text())
    (out / ABOUT).write_text(json.dumps({name: about[name] for name in ("model", "width", "count")}))
    capsys.readouterr()
    assert main(["search", str(out), str(place / "files" / "image001.jpg"), "--top", "1"]) == 0
    assert "image001.jpg" in capsys.readouterr().out
    embedded.clear()
    assert run(place, out) == 0
    assert len(embedded) == 8
    assert same(content(out), whole)


def test_a_link_keeps_its_own_name(place, tmp_path):
    blob = tmp_path / "blobs" / "abc123"
    blob.parent.mkdir()
    shutil.copy(place / "files" / "image000.jpg", blob)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "photo.jpg").symlink_to(blob)
    (tmp_path / "files" / "gone.jpg").symlink_to("nowhere")
    assert run(place, tmp_path / "idx", files=tmp_path / "files") == 0
    assert list(content(tmp_path / "idx")) == [str(tmp_path / "files" / "photo.jpg")]
    (skipped,) = map(json.loads, (tmp_path / "idx" / SKIPPED).read_text().splitlines())
    assert skipped["file"].endswith("gone.jpg")
    assert "No such file" in skipped["reason"]
