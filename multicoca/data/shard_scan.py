"""Reads a tar of img2dataset's and video2dataset's form once: which samples it holds, where, and what is wrong.

Members with the same name up to the first dot of the last part are one sample, as in WebDataset, wherever they lie in
the tar: `.txt`, `.json` and `.cls` say something about it, all others may be media. The last ending says what a file
is, in upper or lower case.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import fsspec

from multicoca.data.annotations import (
    decode_text,
    parse_captions,
    parse_json,
    parse_split,
    parse_string,
    shorten,
)
from multicoca.data.storage import Member, local_path
from multicoca.data.tar_members import DESCRIBING, Part, add_members
from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken

TEXT_KEYS = ("caption", "captions", "text", "texts")


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
    scan = Scan()
    parts: list[Part] = []
    try:
        with refuse_broken("it cannot be read as an uncompressed tar"), _opened(url) as file:
            add_members(file, url, parts, scan.problems)
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
    media = {part.middle for part in parts if part.kind not in DESCRIBING}
    both = media & {part.middle for part in parts if part.kind in DESCRIBING}
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
        if part.kind not in DESCRIBING:
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
