"""Reads a tar of img2dataset's and video2dataset's form once: which samples it holds, where, and what is wrong.

Members with the same name up to the first dot of the last part are one sample, as in WebDataset, wherever they lie in
the tar: `.txt`, `.json` and `.cls` say something about it, all others may be media. The last ending says what a file
is, in upper or lower case. A tar that is cut short gives all that is whole in it; several joined by `cat` are one.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import fsspec

from multicoca.data.annotations import (
    decode_text,
    packing,
    parse_captions,
    parse_json,
    parse_split,
    parse_string,
    printable,
    shorten,
)
from multicoca.data.storage import Member, local_path
from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken

TEXT_KEYS = ("caption", "captions", "text", "texts")
_DESCRIBING = ("txt", "json", "cls")
_LARGEST_DESCRIPTION = 1 << 24  # bytes; it is read whole
_BLOCK = 512  # of a tar; it ends with two blocks of zeros
_MOST_HOLES = 1 << 26  # bytes that a sparse file may have beyond what is stored of it
_LINKS = 40  # that follow one another, as in Linux


@dataclass
class Part:
    """A member of a tar that belongs to a sample.

    Attributes:
        member: where it lies.
        base: its name up to the first dot.
        ending: what follows that dot.
        content: of a description.
        link: the name of the member that it stands for, or "".
        reason: why it cannot be used, or "".
    """

    member: Member
    base: str = ""
    ending: str = ""
    content: bytes | None = None
    link: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        folder, slash, name = self.member.name.rpartition("/")
        stem, dot, self.ending = name.partition(".")
        self.base = folder + slash + stem if stem and dot else ""  # hidden files and others belong to no sample

    @property
    def kind(self) -> str:
        """The last ending, in lower case."""
        return self.ending.rpartition(".")[2].lower()

    @property
    def middle(self) -> str:
        """What stands between the first dot and the last ending, often nothing."""
        return self.ending.rpartition(".")[0]


@dataclass
class Sample:
    """The members of one key.

    Attributes:
        base: what the members' names have in common.
        media: members that may be media, by what follows `base` and a dot.
        texts: its captions.
        json: where its .json lies.
        label: its class, or None.
        split: the one that it names, or "".
        modality: the one that it names, or "".
        key: the one that it names, or "".
        reason: why it cannot be used, or "".
    """

    base: str
    media: dict[str, Member] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    json: Member | None = None
    label: str | None = None
    split: str = ""
    modality: str = ""
    key: str = ""
    reason: str = ""


@dataclass
class Scan:
    """What a tar holds: its samples in order, and what is wrong with the tar itself."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan_shard(url: str) -> Scan:
    """Reads all headers of a tar and the members that say something about samples."""
    scan, parts = Scan(), []
    try:
        with refuse_broken("it cannot be read as an uncompressed tar"), _opened(url) as file:
            for part in _members(file, url, scan.problems):
                if part.kind in _DESCRIBING and part.base and not part.link and not part.reason:
                    _read(part, file)
                parts.append(part)
            _follow_links(parts, file)
    except UnreadableFileError as error:
        is_absent = isinstance(error.__cause__, FileNotFoundError)
        scan.problems.append("the shard does not exist" if is_absent else str(error))
    seen: set[str] = set()
    for sample in _samples(part for part in parts if part.base):
        if sample.base in seen and not sample.reason:
            sample.reason = f"its key '{sample.base}' occurs twice in the shard; keys must be unique"
        seen.add(sample.base)
        scan.samples.append(sample)
    return scan


def _opened(url: str) -> AbstractContextManager[io.IOBase]:
    path = local_path(url)
    return path.open("rb") if path is not None else fsspec.open(url, "rb").open()


def _members(file: io.IOBase, url: str, problems: list[str]) -> Iterator[Part]:
    """Yields the members that hold something or stand for another; notes what is wrong with the tar itself."""
    end = file.seek(0, 2)
    file.seek(0)
    last, last_offset = "its beginning", -1
    packed = packing(file.read(4))
    file.seek(0)
    if packed:
        raise UnreadableFileError(f"it is {packed}; unpack it")
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while True:
            try:
                with refuse_broken():
                    header = tar.next()
            except UnreadableFileError as error:
                problems.append(f"it is cut short or broken behind {last}: {error}")
                return
            if header is None:
                following = _behind_the_end(file, tar.offset)
                if following is None:
                    break
                tar.offset = following
                continue
            tar.members.clear()  # or it keeps all headers
            name = printable(header.name)
            if header.offset_data <= last_offset or header.size < 0:
                problems.append(f"the header of {name} behind {last} is broken; what follows is lost")
                return
            last, last_offset = name, header.offset_data
            part = _part(url, name, header)
            stored = sum(size for _, size in part.member.extents) if part.member.extents else part.member.size
            is_whole = header.offset_data + stored <= end
            if not is_whole:
                part.reason = f"the shard is cut short inside of {name}"
            if not header.isdir():
                yield part
            if not is_whole:
                problems.append(f"it is cut short inside of {last}")
                return
        file.seek(tar.offset)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        problems.append(f"it is cut short behind {last}; the end mark of a tar is missing")
    elif block.count(0) < _BLOCK:
        problems.append(f"the header behind {last}, at byte {tar.offset}, is broken; what follows is lost")


def _behind_the_end(file: io.IOBase, offset: int) -> int | None:
    """Returns where another tar begins behind the end mark of one, as `cat` joins them; None where nothing follows."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK or block.count(0) < _BLOCK:
        return None  # no end mark
    while block and block.count(0) == len(block):
        offset += len(block)
        block = file.read(_BLOCK)
    return offset if block else None


def _part(url: str, name: str, header: tarfile.TarInfo) -> Part:
    """Returns the member of a header, what it stands for, and why it cannot be used."""
    if header.issym() or header.islnk():
        target = printable(header.linkname)
        target = target if header.islnk() else posixpath.join(posixpath.dirname(name), target)
        return Part(Member(url, name, header.offset_data, 0), link=posixpath.normpath(target))
    if not header.isreg():
        return Part(Member(url, name, header.offset_data, 0), reason=f"{name} is not a file, but a device or a pipe")
    if header.sparse is None:
        return Part(Member(url, name, header.offset_data, header.size))
    extents = tuple((offset, size) for offset, size in header.sparse if size)
    ends = [0, *(offset + size for offset, size in extents)]
    stored = sum(size for _, size in extents)
    is_sound = all(size > 0 and offset >= end for (offset, size), end in zip(extents, ends, strict=False))
    if not is_sound or ends[-1] > header.size:
        return Part(Member(url, name, header.offset_data, 0), reason=f"{name} is a sparse file whose map is broken")
    if header.size - stored > _MOST_HOLES:
        holes = f"{name} is a sparse file with {header.size - stored} bytes of holes"
        return Part(Member(url, name, header.offset_data, 0), reason=f"{holes}; pack it without --sparse")
    # without extents, nothing is stored of a file that is all holes
    return Part(Member(url, name, header.offset_data, header.size, extents or ((0, 0),)))


def _read(part: Part, file: io.IOBase) -> None:
    """Reads a description."""
    if part.member.size > _LARGEST_DESCRIPTION or part.member.extents:
        part.reason = (
            f"its .{part.ending} has {part.member.size} bytes or holes; expected at most {_LARGEST_DESCRIPTION}"
        )
        return
    file.seek(part.member.offset)
    part.content = file.read(part.member.size)


def _follow_links(parts: list[Part], file: io.IOBase) -> None:
    """Gives links, hard or symbolic, the place of the member that they stand for."""
    if not any(part.link for part in parts):
        return
    by_name = {posixpath.normpath(part.member.name): part for part in parts}
    for part in parts:
        target: Part | None = part
        for _ in range(_LINKS):
            if target is None or not target.link:
                break
            target = by_name.get(target.link)
        name = part.member.name
        if not part.link:
            continue
        if target is None or target.link:
            why = "leads back to itself" if target is not None else "is not in the shard"
            part.reason = f"{name} is a link to {part.link}, which {why}"
        elif target.reason:
            part.reason = f"{name} is a link to {part.link}: {target.reason}"
        else:
            place = target.member
            part.member = Member(place.shard, name, place.offset, place.size, place.extents)
            if part.kind in _DESCRIBING and part.base:
                _read(part, file)


def _samples(parts: Iterable[Part]) -> Iterator[Sample]:
    """Yields the samples in the order of their first members.

    Parts of a key belong together wherever they lie, unless an ending comes again: then another sample begins.
    """
    groups: dict[str, list[dict[str, Part]]] = {}
    in_order: list[dict[str, Part]] = []
    for part in parts:
        own = groups.setdefault(part.base, [])
        if not own or part.ending.lower() in own[-1]:
            own.append({})
            in_order.append(own[-1])
        own[-1][part.ending.lower()] = part
    for group in in_order:
        yield from _divided(list(group.values()))


def _divided(parts: list[Part]) -> Iterator[Sample]:
    """Makes samples of the members of one key: one, or several where names with more dots pair media and texts."""
    base = parts[0].base
    media = {part.middle for part in parts if part.kind not in _DESCRIBING}
    both = media & {part.middle for part in parts if part.kind in _DESCRIBING}
    if len(both) > 1:  # clip.v1.mp4, clip.v1.txt, clip.v2.mp4, clip.v2.txt
        for middle in dict.fromkeys(part.middle for part in parts):
            own = [part for part in parts if part.middle == middle]
            yield _sample(f"{base}.{middle}" if middle else base, own, {middle})
    else:
        yield _sample(base, parts, {"", *media, *TEXT_KEYS})


def _sample(base: str, parts: list[Part], middles: set[str]) -> Sample:
    """Takes in what the members say; descriptions count where their names say no more than those of the media."""
    sample = Sample(base)
    ignored: list[str] = []
    for part in parts:
        sample.reason = sample.reason or part.reason
        if part.kind not in _DESCRIBING:
            sample.media[part.member.name[len(base) + 1 :]] = part.member
        elif part.middle not in middles:
            ignored.append(f"its .{part.ending} may belong to something else")
        elif part.content is not None:
            try:
                ignored += _add_description(sample, part)
            except UnreadableFileError as error:
                sample.reason = sample.reason or f"its .{part.ending} cannot be read: {error}"
    sample.texts = list(dict.fromkeys(sample.texts))
    if not sample.texts and sample.label is None and not sample.reason:
        sample.reason = "it has no caption: neither a .txt nor a text in its .json (" + ", ".join(TEXT_KEYS) + ")"
        sample.reason += f"; {', '.join(ignored)}" if ignored else ""
    return sample


def _add_description(sample: Sample, part: Part) -> list[str]:
    """Adds what a description says to a sample; returns why captions that it may hold do not count.

    Raises:
        UnreadableFileError: it cannot be used.
    """
    text = decode_text(part.content or b"")
    if part.kind == "cls":
        sample.label = parse_string("label", text) or None
    elif part.kind == "txt":
        found = parse_captions("text", text)
        sample.texts += found
        return [] if found else [f"its .{part.ending} is empty"]
    else:
        about = parse_json(text)
        about = about if isinstance(about, dict) else {"captions": about}
        sample.json = part.member
        sample.label = sample.label or parse_string("label", about.get("label")) or None
        sample.split = parse_split(about.get("split"))
        sample.modality = parse_string("modality", about.get("modality"))
        sample.key = parse_string("key", about.get("key"))
        odd = []
        for key in TEXT_KEYS:
            given = about.get(key)
            if isinstance(given, str) or (isinstance(given, list) and any(isinstance(one, str) for one in given)):
                sample.texts += parse_captions(key, given)
            elif given not in (None, []) and given == given:
                odd.append(f"{key} in its .{part.ending} is {shorten(given)}, expected a string or a list of strings")
        return odd or [f"its .{part.ending} has the fields {shorten(list(about), 200)}"]
    return []
