"""Writes items of any source as WebDataset shards, in img2dataset's layout: NUMBER.jpg, NUMBER.txt, NUMBER.json.

Files are copied byte for byte. The .txt holds the first caption, if there is one; the .json holds all of them with the
item's key, split, modality, label and whatever else was known, so that the shards are the source again. Left out is
only what a reader would take for another caption.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from multicoca.data.sample import Item, Problem
from multicoca.data.shard_scan import TEXT_KEYS
from multicoca.files import remove_left_over, written_aside
from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken

OUTSIDE = "it lies outside of data.root"


def write_shards(
    items: Iterable[Item], folder: Path, split: str, shard_bytes: int, roots: Sequence[Path] = ()
) -> Iterator[Problem | None]:
    """Writes SPLIT-NUMBER.tar files of about a size, each whole or not at all.

    Args:
        items: what is written.
        folder: where the shards go.
        split: of the items.
        shard_bytes: a shard is closed with the item that reaches this size.
        roots: files outside of these folders are not copied; without any, all are.

    Yields:
        For each item, the problem with a file that cannot be copied, or None.
    """
    remove_left_over(folder, rf"{re.escape(split)}-\d{{6}}\.tar")
    real_roots = [root.resolve() for root in roots]
    found = enumerate(items)
    number, item = next(found, (0, None))
    shard = 0
    while item is not None:
        with written_aside(folder / f"{split}-{shard:06d}.tar") as aside, tarfile.open(aside, "w") as tar:
            while item is not None and tar.offset < shard_bytes:
                problem = None
                try:
                    _check_inside(item, real_roots)
                    content = item.content()
                    media = content if isinstance(content, bytes) else content.read_bytes()
                    described = _described(item, split)
                except (OSError, UnreadableFileError) as error:
                    problem = Problem(item.key, str(item.file), f"it cannot be copied: {error}", split, item.modality)
                else:
                    _add(tar, item, f"{number:09d}", media, described)
                yield problem
                number, item = next(found, (0, None))
        shard += 1


def _check_inside(item: Item, roots: Sequence[Path]) -> None:
    """Raises UnreadableFileError where a file, after all links, lies in none of the folders."""
    if roots and isinstance(item.file, Path):
        place = item.file.resolve()
        if not any(place.is_relative_to(root) for root in roots):
            raise UnreadableFileError(f"{OUTSIDE}, at {place}; data shard --outside copies such files, too")


def _described(item: Item, split: str) -> str:
    """Returns the .json of an item."""
    about = {"key": item.key, "captions": item.texts, "label": item.label, "split": split, "modality": item.modality}
    with refuse_broken():
        extra = {name: value for name, value in item.extra.items() if name not in TEXT_KEYS}
        return json.dumps({**extra, **about})


def _add(tar: tarfile.TarFile, item: Item, name: str, media: bytes, described: str) -> None:
    caption = [(".txt", item.texts[0].encode())] if item.texts else []
    for suffix, content in ((item.file.suffix.lower(), media), *caption, (".json", described.encode())):
        header = tarfile.TarInfo(name + suffix)
        header.size = len(content)
        tar.addfile(header, io.BytesIO(content))
