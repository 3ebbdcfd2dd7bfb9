"""The index of a shard: where each file lies and what is said about it, memory-mapped, so that any item is found at
once and nothing is held in memory.

It is built once, in parallel, and lies beside the shard as NAME.tar.index, or in $MULTICOCA_CACHE where that cannot
be written or is not local. It knows the size and the time of change (or etag) of its shard and is built anew when they
differ. Its form is that of safetensors: named arrays behind a header.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors.numpy import save

from multicoca.data.annotations import printable
from multicoca.data.order import keyed_number
from multicoca.data.shard_scan import Sample, scan_shard
from multicoca.data.storage import Member, local_path, stamp
from multicoca.distributed.launch import available_cores
from multicoca.files import written_aside
from multicoca.terminal import progress

_FORMAT = "3"  # raise it when the arrays change, so that old indexes are built anew
_TYPES = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64}
_REMOTE_THREADS = 16


class ShardIndex:
    """An index that was built, memory-mapped.

    Args:
        file: the index.
        shard: path or URL of its shard.

    Attributes:
        arrays: by name: `hash`, `split`, `modality`, `captions` (how many) of samples, `sample`, `suffix`, `offset`,
            `size` of media, and more.
        about: "suffixes", "splits" and "modalities", which the arrays number; "problems" of the shard; "reasons" why
            samples cannot be used and "extents" of media that are sparse files, by number.
        stamp: of the shard that was indexed.

    Raises:
        ValueError: the file is no index of this version.
    """

    def __init__(self, file: Path, shard: str):
        self.shard = shard
        data = np.asarray(np.memmap(file, np.uint8, "r"))
        try:
            (length,) = struct.unpack("<Q", data[:8].tobytes())
            header: dict[str, Any] = json.loads(data[8 : 8 + length].tobytes())
            metadata = header.pop("__metadata__")
            if metadata["format"] != _FORMAT:
                raise ValueError("it is of another version")
            self.stamp: str = metadata["stamp"]
            self.about: dict[str, Any] = json.loads(metadata["about"])
            self.arrays = {
                name: data[8 + length :][slice(*entry["data_offsets"])].view(_TYPES[entry["dtype"]])
                for name, entry in header.items()
            }
        except (KeyError, struct.error) as error:
            raise ValueError(f"{file} is no index of a shard: {error}") from error

    def record(self, sample: int) -> dict[str, Any]:
        """Returns "key", "texts" and "label" of a sample."""
        return json.loads(self._stretch("records", sample))

    def member(self, row: int) -> Member:
        """Returns the place of a media file."""
        arrays = self.arrays
        base = self._base(int(arrays["sample"][row]))
        name = f"{base}.{self.about['suffixes'][arrays['suffix'][row]]}"
        extents = tuple((place, size) for place, size in self.about["extents"].get(str(row), ()))
        return Member(self.shard, name, int(arrays["offset"][row]), int(arrays["size"][row]), extents)

    def described(self, sample: int) -> Member | None:
        """Returns the place of a sample's .json, or None when it has none."""
        size = int(self.arrays["json_size"][sample])
        offset = int(self.arrays["json_offset"][sample])
        return Member(self.shard, f"{self._base(sample)}.json", offset, size) if size else None

    def _base(self, sample: int) -> str:
        return self._stretch("bases", sample).decode()

    def _stretch(self, name: str, number: int) -> bytes:
        ends = self.arrays[f"{name}_ends"]
        return self.arrays[name][int(ends[number - 1]) if number else 0 : int(ends[number])].tobytes()


@lru_cache(maxsize=4096)  # mapped files; Linux allows a process 65530
def opened(file: Path, shard: str) -> ShardIndex:
    """Returns an index, kept open."""
    return ShardIndex(file, shard)


def index_shards(shards: Sequence[str]) -> list[Path]:
    """Returns the index files of all shards, after building those that are missing or older than their shard.

    Raises:
        ValueError: shards do not exist.
    """
    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        found = list(pool.map(_fresh_index, shards))
    absent = [shard for shard, own in zip(shards, found, strict=True) if own is None]
    if absent:
        more = f", {absent[1]} ..." if len(absent) > 1 else ""
        raise ValueError(
            f"{len(absent)} of {len(shards)} shards do not exist: {absent[0]}{more}; take them out of data.root"
        )
    missing = [shard for shard, (file, _) in zip(shards, found, strict=True) if file is None]
    outdated = [shard for shard, (_, is_outdated) in zip(shards, found, strict=True) if is_outdated]
    if outdated:
        warnings.warn(
            f"{len(outdated)} shards were changed since they were indexed and are indexed anew, first {outdated[0]}",
            stacklevel=2,
        )
    built: dict[str, Path] = {}
    if missing:
        with _executor(missing) as pool:
            files = pool.map(_build, missing)
            opened.cache_clear()
            built = dict(zip(missing, progress(files, total=len(missing), desc="indexing", unit="shard"), strict=True))
    return [file or built[shard] for shard, (file, _) in zip(shards, found, strict=True)]


def item_key(shard: str, sample: Sample) -> str:
    """Returns the `key` of a sample's .json, which img2dataset makes unique over all shards, or SHARD/KEY."""
    return sample.key or printable(f"{PurePosixPath(shard).stem}/{sample.base}")


def _executor(shards: Sequence[str]) -> Executor:
    """Returns processes for local shards, where parsing takes the time, and threads for others, where waiting does."""
    if all(local_path(shard) is not None for shard in shards) and min(len(shards), available_cores()) > 1:
        return ProcessPoolExecutor(min(len(shards), available_cores()))
    return ThreadPoolExecutor(_REMOTE_THREADS)


def _places(shard: str) -> tuple[Path, ...]:
    """Returns where the index of a shard may lie, the best place first."""
    path = local_path(shard)
    cache = Path(os.environ.get("MULTICOCA_CACHE", "~/.cache/multicoca")).expanduser() / "indexes"
    name = PurePosixPath(shard).name
    absolute = shard if path is None else str(path.absolute())
    elsewhere = cache / f"{name}-{keyed_number(absolute):016x}.index"
    return (elsewhere,) if path is None else (path.with_name(f"{name}.index"), elsewhere)


def _fresh_index(shard: str) -> tuple[Path | None, bool] | None:
    """Returns (the index of a shard if there is one that fits, whether there is one that does not); None if there is
    no such shard."""
    try:
        now = stamp(shard)
    except FileNotFoundError:
        return None
    except OSError:
        now = ""
    is_outdated = False
    for file in _places(shard):
        try:
            if ShardIndex(file, shard).stamp == now != "":
                return file, False
            is_outdated = now != ""
        except FileNotFoundError:
            continue
        except (ValueError, OSError):
            is_outdated = True
    return None, is_outdated


def _build(shard: str) -> Path:
    """Indexes a shard; returns the index file."""
    try:
        before = stamp(shard)  # taken first: a shard that is changed meanwhile is found out next time
    except OSError:
        before = ""
    scan = scan_shard(shard)
    arrays, about = _arrays(shard, scan.samples)
    about["problems"] = scan.problems
    content = save(arrays, {"format": _FORMAT, "stamp": before, "about": json.dumps(about)})
    *beside, elsewhere = _places(shard)
    if beside and before:
        try:
            return _written(beside[0], content)
        except OSError:
            pass  # the folder cannot be written
    return _written(elsewhere, content)


def _written(file: Path, content: bytes) -> Path:
    with written_aside(file) as aside:
        aside.write_bytes(content)
    return file


def _arrays(shard: str, samples: Sequence[Sample]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns (arrays, about), see `ShardIndex`."""
    media = [(row, extension, member) for row, s in enumerate(samples) for extension, member in s.media.items()]
    suffixes, suffix = _numbered([extension for _, extension, _ in media])
    splits, split = _numbered([s.split for s in samples])
    modalities, modality = _numbered([s.modality for s in samples])
    keys = [item_key(shard, sample) for sample in samples]
    records = [
        {"key": key, "texts": sample.texts, "label": sample.label} for key, sample in zip(keys, samples, strict=True)
    ]
    arrays = {
        "hash": np.array([keyed_number("split", key) for key in keys], np.uint64),
        "split": split,
        "modality": modality,
        "captions": np.array([len(s.texts) for s in samples], np.uint32),
        "json_offset": np.array([s.json.offset if s.json else 0 for s in samples], np.uint64),
        "json_size": np.array([s.json.size if s.json else 0 for s in samples], np.uint32),
        "sample": np.array([row for row, _, _ in media], np.uint32),
        "suffix": suffix,
        "offset": np.array([member.offset for _, _, member in media], np.uint64),
        "size": np.array([member.size for _, _, member in media], np.uint64),
    }
    arrays |= _joined("bases", [sample.base.encode() for sample in samples])
    arrays |= _joined("records", [json.dumps(record, ensure_ascii=False).encode() for record in records])
    reasons = {row: sample.reason for row, sample in enumerate(samples) if sample.reason}
    extents = {row: member.extents for row, (_, _, member) in enumerate(media) if member.extents}
    about = {"suffixes": suffixes, "splits": splits, "modalities": modalities, "reasons": reasons, "extents": extents}
    return arrays, about


def _numbered(words: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns (the different words, the number of each word in that list)."""
    different = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return list(different), np.array([different[word] for word in words], np.uint32)


def _joined(name: str, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(text) for text in texts], dtype=np.uint64)
    return {name: np.array(bytearray(b"".join(texts)), np.uint8), f"{name}_ends": ends}
