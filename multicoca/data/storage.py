"""Where bytes lie: local files by plain opens, everything else through fsspec; stretches of a file by offset.

A URL is a local path, `file://...`, or any URL whose file system fsspec knows and whose package is installed. fsspec is
imported when it is first needed: a model that reads local files loads without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Member:
    """A file inside a tar.

    Attributes:
        shard: path or URL of the tar.
        name: of the file in it.
        offset: of its first byte in the tar.
        size: in bytes.
        extents: of a sparse file: (place in it, size) of the stretches that the tar holds one after the other; all
            else is zeros.
    """

    shard: str
    name: str
    offset: int
    size: int
    extents: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.shard}::{self.name}"

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def read(self) -> bytes:
        """Returns its content.

        Raises:
            OSError: the tar cannot be read, or has become shorter.
        """
        stored = sum(size for _, size in self.extents) if self.extents else self.size
        data = read_bytes(self.shard, self.offset, stored)
        if len(data) < stored:
            raise OSError(f"{self} should have {stored} bytes at {self.offset}, but the shard ends before")
        if not self.extents:
            return data
        whole, taken = bytearray(self.size), 0
        for place, size in self.extents:
            whole[place : place + size] = data[taken : taken + size]
            taken += size
        return bytes(whole)


def read_bytes(url: str, offset: int, size: int) -> bytes:
    """Returns at most `size` bytes from an offset on."""
    path = local_path(url)
    if path is None:
        system, place = _remote(url)
        return system.cat_file(place, start=offset, end=offset + size)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def read_whole(url: str) -> bytes:
    """Returns the content of a file, wherever it lies."""
    path = local_path(url)
    if path is None:
        system, place = _remote(url)
        return system.cat_file(place)
    return path.read_bytes()


def local_path(url: str) -> Path | None:
    """Returns the path of a local file, or None for one elsewhere."""
    if "://" not in url:
        return Path(url)
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


def stamp(url: str) -> str:
    """Returns what tells one content of a file from another: its size, and its time of change or etag.

    Raises:
        OSError: the file is missing or cannot be reached.
    """
    path = local_path(url)
    if path is not None:
        stat = path.stat()
        return f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    system, place = _remote(url)
    info = system.info(place)
    return f"{info['size']} bytes, " + ", ".join(str(info[name]) for name in _STAMPS if info.get(name) is not None)


def find_files(patterns: str | Sequence[str], suffix: str) -> list[str]:
    """Returns the files that brace patterns, globs and folders name, sorted within each.

    Args:
        patterns: one or several, for example "shards/{000..009}.tar", "s3://bucket/*.tar" or "shards".
        suffix: of the files that are taken from folders.

    Raises:
        ValueError: a pattern names no file.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        own = [url for each in expand_braces(pattern) for url in _find(each, suffix)]
        if not own:
            raise ValueError(f"'{pattern}' names no file; expected a file, a folder with {suffix} files, or a pattern")
        found += own
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> list[str]:
    """Returns what a shell makes of {a,b} and {000..010}."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span is None:
        choices = match[1].split(",")
    else:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [whole for choice in choices for whole in expand_braces(before + choice + after)]


def _find(url: str, suffix: str) -> list[str]:
    path = local_path(url)
    system, place = (_local_system(), str(path.expanduser())) if path else _remote(url)
    if system.isdir(place):
        places = sorted(name for name in system.glob(f"{place.rstrip('/')}/*") if name.endswith(suffix))
    else:
        places = sorted(system.glob(place)) if any(sign in place for sign in "*?[") else [place]
    return places if path else [system.unstrip_protocol(name) for name in places]


def _remote(url: str) -> tuple[AbstractFileSystem, str]:
    """Returns (the file system of a URL, the place in it)."""
    from fsspec.core import url_to_fs  # here, see above

    return url_to_fs(url)


def _local_system() -> AbstractFileSystem:
    from fsspec.implementations.local import LocalFileSystem  # here, see above

    return LocalFileSystem()
