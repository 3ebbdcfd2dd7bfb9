"""Files that are whole or not there: written aside, then renamed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what stands there takes the place of `path` when the block ends without an error.

    After an error `path` is as it was. The folder is made when it is missing. A new file has the permissions that the
    umask gives, whatever writes it (safetensors would let nobody else read it); one that is replaced passes its own on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.touch()
        mode = stat.S_IMODE((path if path.is_file() else aside).stat().st_mode)
        yield aside
        aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
