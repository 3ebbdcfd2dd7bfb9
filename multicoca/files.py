"""Files that are whole or not there: written aside, then renamed. What a killed process left aside is removed.

A process holds a lock on the file that it writes aside, so that another one, also on another machine, knows that it is
still at work.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows nothing is locked, and what is left over stays
    fcntl = None

_ASIDE = re.compile(r"\.(.+)\.(\d+)\.part")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is written there takes the place of `path` when the block ends without an error.

    After an error `path` is as it was. The folder is made when it is missing. A new file has the permissions that the
    umask gives, whatever writes it (safetensors would let nobody else read it); one that is replaced passes its own on.
    What an earlier process left when it was killed while it wrote `path` is removed.

    Raises:
        OSError: it cannot be written; `filename` is that of `path` where the system names no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_over(path.parent).pop(path.name, ()):
        _remove_unless_held(left)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    held = None
    try:
        held = os.open(aside, os.O_WRONLY | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks; then nobody removes what is left over
            _lock(held)
        mode = stat.S_IMODE((path if path.is_file() else aside).stat().st_mode)
        yield aside
        aside.chmod(mode)
        aside.replace(path)
    except OSError as error:
        if error.filename is None or error.filename == str(aside):
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Names a file in errors that name none, such as a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def remove_left_over(folder: Path, name: str) -> None:
    """Removes what killed processes left of files that they wrote aside.

    Args:
        folder: where they were to lie.
        name: a regular expression for their names.
    """
    for target, files in _scan(folder).items():
        if re.fullmatch(name, target):
            for file in files:
                _remove_unless_held(file)


def check_writable(file: Path) -> None:
    """Finds out early whether a file, or its folder, can be made.

    Raises:
        OSError: it cannot; `filename` names what is in the way.
    """
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@lru_cache(maxsize=256)
def _left_over(folder: Path) -> dict[str, list[Path]]:
    """Returns what was left in a folder when this process first wrote there."""
    return _scan(folder)


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Returns the files that `written_aside` has made in a folder, by the name that they were to get."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _ASIDE.fullmatch(path.name)
        if match is not None:
            found.setdefault(match[1], []).append(path)
    return found


def _remove_unless_held(file: Path) -> None:
    """Removes a file that was written aside, unless a process may still be at work on it."""
    number = int(_ASIDE.fullmatch(file.name)[2])
    if fcntl is None or (number != os.getpid() and _is_alive(number)):
        return
    with suppress(OSError):
        held = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            _lock(held)
            file.unlink()
        finally:
            os.close(held)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _lock(descriptor: int) -> None:
    """Locks an open file, or raises OSError at once."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
