"""Reads a tar of img2dataset's and video2dataset's form once: which samples it holds, where, and what is wrong.

Members with the same name up to the first dot of the last part are one sample, as in WebDataset: `.txt`, `.json` and
`.cls` say something about it, all others may be media. A tar that is cut short gives all that is whole in it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec

from multicoca.data.storage import Member, local_path

TEXT_KEYS = ("caption", "captions", "text", "texts")
_SAID = ("txt", "json", "cls")
_BLOCK = 512  # of a tar; it ends with two blocks of zeros
_BROKEN = (tarfile.TarError, OSError, ValueError, EOFError)


@dataclass
class Sample:
    """The members of one key.

    Attributes:
        base: what the members' names have in common.
        media: members that may be media, by extension without the first dot.
        texts: its captions.
        about: what its .json says.
        json: where that is said.
        label: its class.
        reason: why it cannot be used, or "".
    """

    base: str
    media: dict[str, Member] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    json: Member | None = None
    label: str | None = None
    reason: str = ""


@dataclass
class Scan:
    """What a tar holds: its samples in order, and what is wrong with the tar itself."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan_shard(url: str) -> Scan:
    """Reads all headers of a tar and the members that say something about samples."""
    scan = Scan()
    path = local_path(url)
    try:
        with path.open("rb") if path is not None else fsspec.open(url, "rb").open() as file:
            for sample in _samples(file, url, scan.problems):
                _finish(sample)
                scan.samples.append(sample)
    except FileNotFoundError:
        scan.problems.append("the shard does not exist")
    except _BROKEN as error:
        scan.problems.append(f"it cannot be read as an uncompressed tar: {error}")
    seen: set[str] = set()
    for sample in scan.samples:
        if sample.base in seen and not sample.reason:
            sample.reason = f"its key '{sample.base}' occurs twice in the shard; keys must be unique"
        seen.add(sample.base)
    return scan


def _samples(file: io.IOBase, url: str, problems: list[str]) -> Iterator[Sample]:
    """Yields the samples of a tar."""
    sample = None
    for member, is_whole in _members(file, url, problems):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot:
            continue  # hidden files and files without an ending belong to no sample
        base = folder + slash + stem
        if sample is None or sample.base != base or extension in sample.media:
            if sample is not None:
                yield sample
            sample = Sample(base)
        if not is_whole:
            sample.reason = f"the shard is cut short inside of {member.name}"
        elif extension in _SAID:
            file.seek(member.offset)
            _hear(sample, extension, member, file.read(member.size))
            continue
        if extension not in _SAID:
            sample.media[extension] = member
    if sample is not None:
        yield sample


def _members(file: io.IOBase, url: str, problems: list[str]) -> Iterator[tuple[Member, bool]]:
    """Yields (member, whether the tar holds all of it); the end of a tar that has none is a problem."""
    end = file.seek(0, 2)
    file.seek(0)
    last = "its beginning"
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while True:
            try:
                header = tar.next()
            except tarfile.TarError as error:
                problems.append(f"it is cut short behind {last}: {error}")
                return
            if header is None:
                break
            tar.members.clear()  # or it keeps all headers
            is_whole = header.offset_data + header.size <= end
            if header.isreg() and not header.issparse():
                yield Member(url, header.name, header.offset_data, header.size), is_whole
            last = header.name
            if not is_whole:
                problems.append(f"it is cut short inside of {last}")
                return
        file.seek(tar.offset)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        problems.append(f"it is cut short behind {last}; the end mark of a tar is missing")
    elif block.count(0) < _BLOCK:
        problems.append(f"the header behind {last}, at byte {tar.offset}, is broken; what follows is lost")


def _hear(sample: Sample, extension: str, member: Member, content: bytes) -> None:
    """Takes in what a member says about its sample."""
    try:
        text = content.decode()
        if extension == "txt":
            sample.texts.append(text)
        elif extension == "cls":
            sample.label = text.strip() or None
        else:
            sample.json = member
            about = json.loads(text)
            sample.about = about if isinstance(about, dict) else {"captions": about}
    except ValueError as error:
        sample.reason = f"its .{extension} cannot be read: {error}"


def _finish(sample: Sample) -> None:
    """Collects the captions and the label from what was heard."""
    for key in TEXT_KEYS:
        given = sample.about.get(key)
        sample.texts += given if isinstance(given, list) else [given]
    texts = [
        text.strip().encode(errors="replace").decode()
        for text in sample.texts
        if isinstance(text, str) and text.strip()
    ]
    sample.texts = list(dict.fromkeys(texts))
    if sample.label is None and sample.about.get("label") not in (None, ""):
        sample.label = str(sample.about["label"])
    if not sample.texts and not sample.reason:
        sample.reason = "it has no caption: neither a .txt nor a text in its .json (" + ", ".join(TEXT_KEYS) + ")"
