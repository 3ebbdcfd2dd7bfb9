"""A search finds what a full sort finds, takes any query, and says which file of a damaged index is damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import DEADLINE_S
from small_models import write_model, write_scenes

from multicoca.cli import search as module
from multicoca.cli.index_files import ABOUT, FILES, ROWS
from multicoca.cli.main import main
from multicoca.cli.search import Index, best_places, search_index

STRANGE = b"caf\xe9\x1b[2J\n\xf0\x9f\x90\x8b.jpg"  # Latin-1, an escape sequence, a line end and a whale


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, files of two modalities, one with a strange name, and their index."""
    folder = tmp_path_factory.mktemp("search")
    write_model(folder / "model")
    write_scenes(folder / "files", range(4))
    write_scenes(folder / "files", range(3), "points")
    os.rename(folder / "files" / "image003.jpg", os.fsencode(folder / "files") + b"/" + STRANGE)
    assert main(["index", str(folder / "model"), str(folder / "files"), "--out", str(folder / "idx")]) == 0
    return folder


def found(capsys, *arguments: object, status: int = 0) -> list[str]:
    """The lines that a search prints; those of errors when it fails."""
    capsys.readouterr()
    assert main(["search", *map(str, arguments)]) == status
    output, error = capsys.readouterr()
    return (error if status else output).splitlines()


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("top", [1, 2, 10, 64, 999, 5000])
def test_the_best_are_those_of_a_full_stable_sort_with_all_ties(tmp_path, monkeypatch, count, top):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 64)
    generator = np.random.default_rng(count)
    rows = generator.integers(-2, 3, (count, 4)).astype(np.float32)  # exact products, and many of them equal
    query = np.array([1, 0.5, 0, 2], np.float32)
    rows[generator.random(count) < 0.05] = np.nan
    rows.tofile(tmp_path / ROWS)
    modalities = ["ab"[number % 2] for number in range(count)]
    lines = [json.dumps({"file": str(n), "modality": name}) + "\n" for n, name in enumerate(modalities)]
    (tmp_path / FILES).write_text("".join(lines))
    order = [int(row) for row in np.argsort(-(rows @ query), kind="stable") if np.isfinite(rows[row]).all()]
    index = Index(tmp_path, "model", 4, count)
    got = search_index(index, query, top)
    assert [int(line["file"]) for _, line in got] == order[:top]
    assert [score for score, _ in got] == [float(rows[row] @ query) for row in order[:top]]
    of_a = search_index(index, query, top, "a")
    assert [int(line["file"]) for _, line in of_a] == [row for row in order if row % 2 == 0][:top]


def test_of_equal_scores_the_first_are_kept():
    assert best_places(np.array([1, 2, 2, 0, 2], np.float32), 2).tolist() == [1, 2]
    assert best_places(np.array([1, 2, 2, 0, 3], np.float32), 2).tolist() == [1, 4]
    assert best_places(np.zeros(3, np.float32), 5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("length", [255, 256, 300, 5000, 100_000])
def test_a_sentence_may_be_longer_than_any_file_name(place, capsys, length):
    assert len(found(capsys, place / "idx", ("a red cube " * length)[:length])) == 7


def test_a_sentence_may_hold_a_null_byte_and_bytes_that_are_no_text_are_refused(place, capsys):
    assert len(found(capsys, place / "idx", "a red\0cube")) == 7
    (line,) = found(capsys, place / "idx", "caf\udce9", status=2)
    assert r"the query is not UTF-8: caf\xe9" in line


def test_a_query_that_is_a_file_is_one_unless_it_is_said_to_be_a_sentence(place, capsys, monkeypatch):
    monkeypatch.chdir(place / "files")
    first, *_ = found(capsys, place / "idx", "image001.jpg")
    assert first == f"1.000\timage\t{place / 'files' / 'image001.jpg'}"
    sentence = found(capsys, place / "idx", "image001.jpg", "--text")
    assert not any(line.startswith("1.000") for line in sentence)
    assert sentence == found(capsys, place / "idx", "--text", "image001.jpg")


def test_hits_of_one_modality_and_as_json(place, capsys):
    lines = [json.loads(line) for line in found(capsys, place / "idx", "a cube", "--json", "--modality", "points")]
    assert [set(line) for line in lines] == [{"similarity", "modality", "file"}] * 3
    assert {line["modality"] for line in lines} == {"points"}
    plain = found(capsys, place / "idx", "a cube", "--modality", "points", "--top", 2)
    assert plain == [f"{line['similarity']:.3f}\tpoints\t{line['file']}" for line in lines[:2]]
    (line,) = found(capsys, place / "idx", "a cube", "--modality", "smell", status=2)
    assert line == "multicoca search: --modality is 'smell'; the index has files of image, points"


@pytest.mark.parametrize("top", [0, -3])
def test_a_number_of_hits_below_one_is_refused(place, capsys, top):
    assert found(capsys, place / "idx", "a", "--top", top, status=2) == [
        f"multicoca search: --top is {top}; expected at least 1"
    ]


def test_a_file_whose_name_is_no_text_is_found_by_itself_and_named_harmlessly(place, capsys):
    file = os.fsdecode(os.fsencode(place / "files") + b"/" + STRANGE)
    shown = rf"{place}/files/caf\xe9\x1b[2J\n🐋.jpg"
    assert found(capsys, place / "idx", file, "--top", 1) == [f"1.000\timage\t{shown}"]
    (line,) = found(capsys, place / "idx", file, "--top", 1, "--json")
    assert json.loads(line)["file"] == file
    capsys.readouterr()
    assert main(["caption", str(place / "model"), file]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(shown + "\t")


def change_about(**changes):
    def change(folder: Path) -> None:
        about = json.loads((folder / ABOUT).read_text())
        (folder / ABOUT).write_text(json.dumps({name: v for name, v in {**about, **changes}.items() if v is not None}))

    return change


def change_file(name: str, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


DAMAGES = [
    (ABOUT, change_file(ABOUT, lambda text: text[:9])),
    (ABOUT, change_file(ABOUT, lambda text: b"")),
    (ABOUT, change_file(ABOUT, lambda text: b"\xff\xfe")),
    (ABOUT, change_file(ABOUT, lambda text: b"[1, 2]")),
    (ABOUT, change_file(ABOUT, lambda text: b"[" * 100_000)),
    (ABOUT, change_about(model=7)),
    (ABOUT, change_about(model=None)),
    (ABOUT, change_about(model=["a"])),
    (ABOUT, change_about(width="128")),
    (ABOUT, change_about(width=0)),
    (ABOUT, change_about(count=-1)),
    (ABOUT, change_about(count=True)),
    (ABOUT, change_about(count=7.0)),
    (ROWS, change_about(count=8)),
    (ROWS, change_about(count=10**30)),
    (ROWS, change_about(width=10**30)),
    (ROWS, change_file(ROWS, lambda rows: rows[:-1])),
    (ROWS, change_file(ROWS, lambda rows: rows + rows)),
    (ROWS, change_file(ROWS, lambda rows: rows[512:] + rows[:512])),
    (ROWS, lambda folder: (folder / ROWS).unlink()),
    (FILES, lambda folder: (folder / FILES).unlink()),
    (FILES, change_file(FILES, lambda text: b"")),
    (FILES, change_file(FILES, lambda text: text[:-5])),
    (FILES, change_file(FILES, lambda text: text[:-1])),
    (FILES, change_file(FILES, lambda text: text + b'{"file": "a", "modality": "image"}\n')),
    (FILES, change_file(FILES, lambda text: text.replace(b'"modality"', b'"mode"'))),
    (FILES, change_file(FILES, lambda text: text.replace(b"{", b"\xff"))),
    (FILES, change_file(FILES, lambda text: b"\n".join([b"[1]"] * 7) + b"\n")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_index_is_an_error_of_one_line_that_names_the_file(place, tmp_path, capsys, number):
    name, damage = DAMAGES[number]
    folder = Path(shutil.copytree(place / "idx", tmp_path / "idx"))
    damage(folder)
    for more in ((), ("--modality", "image")):
        (line,) = found(capsys, folder, "a cube", *more, status=2)
        assert line.startswith(f"multicoca search: {folder / name} is damaged: ")
        assert line.endswith(f"write the index again with: multicoca index MODEL FOLDER --out {folder} --fresh")


def test_what_is_no_index_says_how_to_make_one(tmp_path, capsys):
    (line,) = found(capsys, tmp_path / "nowhere", "a cube", status=2)
    assert "is not an index; make one with: multicoca index" in line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_commands_print_on_any_terminal_and_into_a_pipe_that_closes(place, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "multicoca.cli.main"]
    done = subprocess.run(
        [*command, "search", place / "idx", "ein Würfel 🐋"], capture_output=True, env=environment, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    assert b"caf\\xe9\\x1b[2J\\n" in done.stdout
    script = f"{' '.join(command)} search {place / 'idx'} cube; echo status $? >&2"
    closed = subprocess.run(
        ["bash", "-c", f"({script}) | true"], capture_output=True, env=environment, timeout=DEADLINE_S
    )
    assert closed.stderr.decode().split("\n", 1)[0] == "status 141", closed.stderr
