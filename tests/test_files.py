"""Files are whole or not there, and follow the umask."""

import os
import stat
import sys

import pytest
import torch
from safetensors.torch import save_file

from multicoca.cli.main import main
from multicoca.files import write_text, written_aside


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


def test_the_command_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("multicoca 0.")
