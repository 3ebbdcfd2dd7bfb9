"""What is printed cannot harm a terminal, and progress is readable there and in a log file."""

import errno
import io
import re
import sys
from dataclasses import replace

import pytest

from multicoca import terminal
from multicoca.cli import main as module
from multicoca.cli.main import describe, main
from multicoca.config import Config
from multicoca.runs.folder import opened_run
from multicoca.terminal import printable, progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[2Jb", r"a\x1b[2Jb"), ("a\nb\rc\td", r"a\nb\rc\td"), ("\x9b31m\x7f\0", r"\x9b31m\x7f\x00"),
     ("caf\udce9", r"caf\xe9"), ("\ud83d", r"\ud83d"), ("a\u202egpj.exe", r"a\u202egpj.exe"),
     ("a\u2028b", r"a\u2028b"), ("crème 🐋 می\u200cخواهم 立方体", "crème 🐋 می\u200cخواهم 立方体"), ("C:\\n", "C:\\n")],
)  # fmt: skip
def test_only_what_could_harm_is_escaped(text, shown):
    assert printable(text) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_a_log_file_has_lines(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
    assert list(progress(range(3), desc="counting\x1b", unit="file")) == [0, 1, 2]
    lines = capsys.readouterr().err
    assert "\r" not in lines
    shown = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines.splitlines()]
    assert shown[0] == r"counting\x1b: 0% 0/3 file, ?file/s, ? left"
    assert [line.split(",")[0] for line in shown[1:]] == [
        rf"counting\x1b: {n}/3 file".replace(": ", f": {n * 100 / 3:.0f}% ") for n in (1, 2, 3, 3)
    ]
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(iter(range(3)), total=3)) == [0, 1, 2]
    assert "\r" in sys.stderr.getvalue()


def test_bars_within_bars_move_no_cursor_in_a_log_file(capsys):
    with progress(total=2, desc="outer") as outer, progress(desc="inner") as inner:
        outer.update()
        inner.update()
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\r" not in error
    assert "inner: 1 item" in error


def test_a_missing_permission_and_a_full_disk_are_said_with_the_file_and_what_to_do():
    assert describe(PermissionError(errno.EACCES, "Permission denied", "/data/\x1b.json")) == (
        r"no permission for /data/\x1b.json (Permission denied); change the permissions of the file or its folder, or "
        "give another place"
    )
    assert describe(OSError(errno.EROFS, "Read-only file system", "/mnt/a")).startswith("no permission for /mnt/a (Re")
    assert describe(OSError(errno.ENOSPC, "No space left on device", "/data/a.tar")) == (
        "the disk is full: /data/a.tar cannot be written (No space left on device); make room, or give a place on "
        "another disk"
    )


def command(monkeypatch, capsys, action) -> tuple[int, str]:
    """What a command that does this gives back and says."""
    monkeypatch.setattr(module.importlib, "import_module", lambda name: type("Cli", (), {"run_search": action}))
    status = main(["search"])
    return status, capsys.readouterr().err


def test_errors_of_others_are_joined_and_names_in_our_own_are_escaped(monkeypatch, capsys):
    def foreign(rest):
        int("1\n  2")

    def wrapped(rest):
        try:
            raise ValueError("one\n  two\x1b")
        except ValueError as error:
            raise ValueError(f"it is\nbroken: {error}") from error

    assert command(monkeypatch, capsys, foreign)[0] == 2
    assert command(monkeypatch, capsys, wrapped) == (2, "multicoca search: it is broken: one two\\x1b\n")
    status, error = command(monkeypatch, capsys, lambda rest: module.importlib.metadata.version(""))
    assert (status, error.count("\n")) == (2, 1)
    missing = "there\nis\x1bnone"
    monkeypatch.undo()
    assert main(["caption", missing, "a.jpg"]) == 2
    assert r"there is no model folder there\nis\x1bnone" in capsys.readouterr().err
    assert main(["a\nb"]) == 2
    assert r"there is no command 'a\nb'" in capsys.readouterr().err


def test_our_own_lists_of_differences_keep_their_lines(monkeypatch, capsys, tmp_path):
    def opened(rest, seed=1):
        with opened_run(tmp_path / "run", replace(Config(output=str(tmp_path)), seed=seed)) as run:
            run.begin("{}", {})
            (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True, exist_ok=True)
            return 0

    assert command(monkeypatch, capsys, opened) == (0, "")
    status, error = command(monkeypatch, capsys, lambda rest: opened(rest, 2))
    assert status == 2
    assert error.splitlines()[1] == "  seed: 1 then, 2 now"
    assert error.count("\n") == 3


def test_a_pipe_that_closes_elsewhere_is_an_error(monkeypatch, capsys):
    def lost(rest):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    status, error = command(monkeypatch, capsys, lost)
    assert status == 2
    assert "Broken pipe" in error
