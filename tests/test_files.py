"""Files are whole or not there, and follow the umask."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multicoca.cli.main import main
from multicoca.files import check_writable, remove_left_over, write_text, written_aside


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_follows_the_umask_whatever_writes_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        with written_aside(tmp_path / "a.safetensors") as aside:
            save_file({"a": torch.ones(1)}, aside)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a.txt") == mode_of(tmp_path / "a.safetensors") == mode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_file_that_is_replaced_passes_its_permissions_on(tmp_path):
    write_text(tmp_path / "a.txt", "first")
    (tmp_path / "a.txt").chmod(0o664)
    write_text(tmp_path / "a.txt", "second")
    assert mode_of(tmp_path / "a.txt") == 0o664
    assert (tmp_path / "a.txt").read_text() == "second"


def test_after_an_error_the_file_is_as_it_was_and_nothing_is_left(tmp_path):
    write_text(tmp_path / "a.txt", "first")

    def fail() -> None:
        with written_aside(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


GONE = 2**22 + 1  # a process that cannot be: Linux numbers them up to 2**22


def left_over(folder: Path, name: str, process: int = GONE) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f".{name}.{process}.part"
    file.write_text("half")
    return file


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    mine = [left_over(tmp_path, "a.txt"), left_over(tmp_path, "a.txt", os.getpid())]
    others = [left_over(tmp_path, "b.txt"), left_over(tmp_path, "a.txt", 1), tmp_path / ".a.txt.part",
              tmp_path / "a.txt.7.part", tmp_path / ".a.txt.x.part"]  # fmt: skip
    for file in others:
        file.touch()
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert not any(file.exists() for file in mine)
    assert all(file.exists() for file in others)  # of another file, of a process that lives, and of somebody else
    remove_left_over(tmp_path, r"b\.txt")
    assert not others[0].exists()
    assert all(file.exists() for file in others[1:])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_another_process_is_writing_stays(tmp_path):
    script = (
        "import os, pathlib, sys, time; from multicoca import files; os.getpid = lambda: int(sys.argv[2])\n"
        "with files.written_aside(pathlib.Path(sys.argv[1])): print('ready', flush=True); time.sleep(600)"
    )
    # as on another machine or in another container, where its number says nothing here
    arguments = [sys.executable, "-c", script, str(tmp_path / "a.txt"), str(GONE)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            aside = tmp_path / f".a.txt.{GONE}.part"
            assert aside.exists()
            remove_left_over(tmp_path, ".*")
            assert aside.exists()
        finally:
            process.kill()
    remove_left_over(tmp_path, ".*")
    assert not aside.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    def fill() -> None:
        with written_aside(tmp_path / "a.txt") as aside:
            aside.unlink()
            aside.symlink_to("/dev/full")
            aside.write_text("half")

    with pytest.raises(OSError, match="No space left on device") as error:
        fill()
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a.txt"))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_found_out_before(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder" / "a.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.txt").touch()
    check_writable(tmp_path / "a.txt")
    with pytest.raises(NotADirectoryError, match=r"a\.txt"):
        check_writable(tmp_path / "a.txt" / "b.txt")
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(PermissionError) as error:
        check_writable(tmp_path / "new" / "a.txt")
    assert error.value.filename == str(tmp_path)


def test_the_command_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("multicoca 0.")
