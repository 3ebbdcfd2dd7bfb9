"""Reads the members of a tar: where each lies, what is wrong with it, and what descriptions and links hold.

All forms of tar are read, with holes and links. A tar that is cut short gives all that is whole in it; several joined
by `cat` are one.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from multicoca.data.annotations import packing, printable
from multicoca.data.storage import Member
from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken

DESCRIBING = ("txt", "json", "cls")
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
        kind: the last ending, in lower case.
        content: of a description.
        link: the name of the member that it stands for, or "".
        reason: why it cannot be used, or "".
    """

    member: Member
    base: str = ""
    ending: str = ""
    kind: str = ""
    content: bytes | None = None
    link: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        folder, slash, name = self.member.name.rpartition("/")
        stem, dot, self.ending = name.partition(".")
        self.base = folder + slash + stem if stem and dot else ""  # hidden files and others belong to no sample
        self.kind = self.ending.rpartition(".")[2].lower()

    @property
    def describes(self) -> bool:
        """Whether it says something about a sample."""
        return self.kind in DESCRIBING and bool(self.base)

    @property
    def middle(self) -> str:
        """The part of the name between the first dot and the last ending, often empty."""
        return self.ending.rpartition(".")[0]


def add_members(file: io.IOBase, url: str, parts: list[Part], problems: list[str]) -> None:
    """Reads the headers of a tar and the members that describe others.

    Args:
        file: the tar.
        url: where it lies.
        parts: the members are added here, so that an error leaves those before it.
        problems: what is wrong with the tar itself is added here.

    Raises:
        UnreadableFileError: it is no tar.
    """
    for part in _members(file, url, problems):
        if part.describes and not part.link and not part.reason:
            _read(part, file)
        parts.append(part)
    _follow_links(parts, file)


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
            if part.describes:
                _read(part, file)
