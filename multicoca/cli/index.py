"""`multicoca index MODEL FOLDER...`: embeds files for `multicoca search`; the same command resumes or updates.

Rows and lines are appended as they come, beside the finished index, whose place they take at the end. Each line has a
checksum of its row, so that a kill at any moment costs at most the batch at work. See `multicoca.cli.index_files`.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from multicoca.api import MultiCoCa, load
from multicoca.cli.index_files import (
    ABOUT,
    BEGUN,
    FILES,
    LOCK,
    NEW,
    PART,
    ROWS,
    SKIPPED,
    read_about,
    whole_lines,
    whole_rows,
)
from multicoca.data.sample import Problem
from multicoca.files import naming, write_text
from multicoca.modality import UnreadableFileError
from multicoca.runs.model_folder import CONFIG, WEIGHTS, local_folder
from multicoca.terminal import printable, progress

Stamp = tuple[int, int]  # size in bytes and time of change in ns
_OWN = (ROWS, FILES, SKIPPED, ABOUT)


def run_index(arguments: list[str]) -> int:
    """Runs `multicoca index`."""
    parser = argparse.ArgumentParser(
        prog="multicoca index",
        description="Embeds files for search. Run it again to go on after a stop, or to take in what has changed.",
    )
    parser.add_argument("model", help="a model folder, or owner/name of the hub")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="folders (read recursively) or files")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("--batch-size", type=int, default=16, help="files encoded together (default: 16)")
    parser.add_argument("--fresh", action="store_true", help="embed all files again, with any model")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}; expected at least 1")
    missing = [str(path) for path in options.paths if not path.exists()]
    if missing:
        raise ValueError(f"there is no {', '.join(missing)}")
    with opened_index(options.out):
        model = load(options.model)
        written = write_index(model, options.model, options.paths, options.out, options.batch_size, options.fresh)
    out = printable(options.out)
    print(
        f"{written.count} files are in {out}: {written.new} new or changed, {written.count - written.new} as before; "
        f"{written.gone} are gone; {written.skipped} were skipped, see {printable(options.out / SKIPPED)}"
    )
    return 0


@contextmanager
def opened_index(out: Path) -> Iterator[None]:
    """Makes the folder of an index, or checks that it holds one, and keeps other processes out of it.

    Raises:
        ValueError: the folder holds something else and no index, or another process is writing it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give another --out")
    if out.is_dir() and not _is_index(out):
        raise ValueError(f"{out} exists and is not an index; give another --out")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reason = f"another process is writing the index {out}; wait for its end, or give another --out"
        raise ValueError(reason) from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            if is_new and {path.name for path in out.iterdir()} <= {LOCK}:  # nothing was written
                (out / LOCK).unlink(missing_ok=True)
                out.rmdir()


def _is_index(out: Path) -> bool:
    """Whether a folder holds an index, finished or begun, or nothing."""
    has_begun = (out / PART / BEGUN).is_file() or (out / PART / ABOUT).is_file()
    is_finished = (out / ABOUT).is_file() and ((out / ROWS).is_file() or (out / FILES).is_file())
    return has_begun or is_finished or all(path.name in (LOCK, PART) for path in out.iterdir())


@dataclass(frozen=True)
class Written:
    """What an index holds, in numbers of files.

    Attributes:
        count: all of it.
        new: embedded by this process.
        gone: no longer in it.
        skipped: that could not be read.
    """

    count: int
    new: int
    gone: int
    skipped: int


def write_index(
    model: MultiCoCa, name: str, paths: Iterable[Path], out: Path, batch_size: int, fresh: bool = False
) -> Written:
    """Embeds the files that an index lacks and takes out those that are gone.

    Args:
        model: who embeds.
        name: of the model, as the user gave it.
        paths: folders, and files.
        out: the folder of the index, which `opened_index` holds.
        batch_size: files encoded together.
        fresh: use nothing of an earlier index.

    Raises:
        ValueError: the index is of another model, or no file could be read.
    """
    about, part = _describe_model(model, name), out / PART
    if (part / ABOUT).is_file():
        _take_place(out)  # a kill came in between
    if fresh:
        _remove_part(out)
    before = next((file for file in (part / BEGUN, out / ABOUT) if file.is_file()), None)
    if before is not None and not fresh:
        _check_same_model(read_about(before, out), about, out)
    part.mkdir(exist_ok=True)
    write_text(part / BEGUN, json.dumps(about))
    files, problems = list_files(paths, out)
    old = {str(line.get("file")) for line in whole_lines(out / FILES)}
    sources = [] if fresh else [part, out]
    reused, skipped = _begin(part, sources, files, problems, about["width"])
    left = [file for file in files if file not in reused and file not in skipped]
    new = _append(model, part, files, left, batch_size)
    count = len(reused) + new
    if not count:
        first = next(whole_lines(part / SKIPPED), None)
        _remove_part(out)
        told = "there is none" if first is None else f"the first: {first['file']}: {first['reason']}"
        raise ValueError(f"no file under {', '.join(map(str, paths))} could be read; {told}")
    write_text(part / ABOUT, json.dumps({**about, "count": count}))
    total_skipped = sum(1 for _ in whole_lines(part / SKIPPED))
    _take_place(out)
    return Written(count, new, len(old - files.keys()), total_skipped)


def _describe_model(model: MultiCoCa, name: str) -> dict[str, Any]:
    """Returns what tells one model from another."""
    folder = local_folder(name)
    digests = []
    for part in (CONFIG, WEIGHTS):
        with (folder / part).open("rb") as file:
            digests.append(file_digest(file, lambda: blake2b(digest_size=16)).hexdigest())
    path = Path(name).expanduser()
    return {
        "model": str(path.resolve()) if path.exists() else name,
        "digest": "-".join(digests),
        "width": model.bundle.network.config.embedding_width,
    }


def _check_same_model(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    name = "digest" if "digest" in before else "model"  # earlier versions wrote no digest
    if before.get(name) != now[name] or before.get("width") != now["width"]:
        weights = "other weights of " if before.get("model") == now["model"] else ""
        raise ValueError(
            f"{out} is an index by {weights}the model {before.get('model')}, not by {now['model']}; give another "
            "--out, or embed all files again with --fresh"
        )


def list_files(paths: Iterable[Path], out: Path) -> tuple[dict[str, Stamp], list[dict[str, str]]]:
    """Lists the files below some paths in a fixed order; hidden ones and those of the index itself are left out.

    Returns:
        (size and time of change of each file, what cannot be listed with the reason).
    """
    files: dict[str, Stamp] = {}
    problems: list[dict[str, str]] = []

    def note(error: OSError) -> None:
        problems.append({"file": str(error.filename), "reason": f"it cannot be listed: {error.strerror}"})

    index = os.path.realpath(out)
    for path in paths:
        # links below a folder keep their own names, whose endings say what they are
        here = [os.path.join(os.path.realpath(path.parent), path.name)]
        for file in here if path.is_file() else _below(os.path.realpath(path), index, note):
            try:
                found = os.stat(file)
            except OSError as error:
                note(error)
                continue
            if stat.S_ISREG(found.st_mode):
                files[file] = (found.st_size, found.st_mtime_ns)
    return files, problems


def _below(root: str, index: str, note: Any) -> Iterator[str]:
    """Yields the files below a folder."""
    for folder, folders, names in os.walk(root, onerror=note):
        # an earlier version wrote its index aside as NAME.part
        visible = (name for name in folders if name[0] != "." and os.path.join(folder, name) != f"{index}.part")
        folders[:] = sorted(visible)
        own = _OWN if folder == index else ()
        yield from (os.path.join(folder, name) for name in sorted(names) if name[0] != "." and name not in own)


def _begin(
    part: Path,
    sources: Iterable[Path],
    files: Mapping[str, Stamp],
    problems: Iterable[Mapping[str, str]],
    width: int,
) -> tuple[set[str], set[str]]:
    """Writes what is done already as the beginning of a new index.

    Returns:
        (the files that need not be embedded, those that cannot be).
    """
    reused: set[str] = set()
    skipped: set[str] = set()

    def is_unchanged(line: Mapping[str, Any]) -> bool:
        file = line.get("file")
        return isinstance(file, str) and files.get(file) == (line.get("size"), line.get("mtime_ns"))

    with naming(part), _open(part, ROWS + NEW, "wb") as rows, _open(part, FILES + NEW, "wb") as lines:
        for source in sources:
            for line, row in whole_rows(source, width):
                if is_unchanged(line) and line["file"] not in reused:
                    reused.add(line["file"])
                    rows.write(row)
                    lines.write(_line(line))
    with naming(part), _open(part, SKIPPED + NEW, "wb") as lines:
        lines.writelines(map(_line, problems))
        for line in whole_lines(part / SKIPPED) if part in sources else ():
            if is_unchanged(line) and line["file"] not in skipped:
                skipped.add(line["file"])
                lines.write(_line(line))
    for name in (ROWS, FILES, SKIPPED):
        (part / (name + NEW)).replace(part / name)
    return reused, skipped - reused


def _append(model: MultiCoCa, part: Path, files: Mapping[str, Stamp], left: list[str], batch_size: int) -> int:
    """Embeds files; returns how many could be."""
    count = 0
    with (
        naming(part),
        _open(part, ROWS, "ab") as rows,
        _open(part, FILES, "ab") as lines,
        _open(part, SKIPPED, "ab") as skipped,
    ):
        found = model.stream(map(Path, left), batch_size)
        for path, embedding in progress(
            found, total=len(files), initial=len(files) - len(left), desc="indexing", unit="file"
        ):
            size, mtime_ns = files[str(path)]
            line = {"file": str(path), "size": size, "mtime_ns": mtime_ns}
            try:
                modality = _checked_modality(model, path, embedding)
            except UnreadableFileError as error:
                skipped.write(_line({**line, "reason": str(error)}))
                skipped.flush()
                continue
            row = embedding.float().numpy().tobytes()
            rows.write(row)
            rows.flush()
            lines.write(_line({**line, "modality": modality, "crc32": zlib.crc32(row)}))
            lines.flush()
            count += 1
    return count


def _checked_modality(model: MultiCoCa, path: Path, embedding: Problem | Tensor) -> str:
    """Returns the modality of a file.

    Raises:
        UnreadableFileError: it has no embedding that can be used, or was taken away meanwhile.
    """
    if isinstance(embedding, Problem):
        raise UnreadableFileError(embedding.reason)
    if not embedding.isfinite().all():
        raise UnreadableFileError("the model's encoding of it is NaN or infinite")
    return model.modality_of(path)


def _take_place(out: Path) -> None:
    """Makes the finished index in PART the index; may be called again after a kill."""
    if (out / PART / ROWS).is_file():
        (out / ABOUT).unlink(missing_ok=True)  # so that nobody reads new rows with old names
    for name in (ROWS, FILES, SKIPPED):
        if (out / PART / name).is_file():
            (out / PART / name).replace(out / name)
    (out / PART / ABOUT).replace(out / ABOUT)
    _remove_part(out)


def _remove_part(out: Path) -> None:
    """Removes what this command wrote into PART, and nothing else."""
    for name in (*_OWN, BEGUN, ROWS + NEW, FILES + NEW, SKIPPED + NEW):
        (out / PART / name).unlink(missing_ok=True)
    with suppress(OSError):  # it does not exist, or holds something of somebody else's
        (out / PART).rmdir()


def _line(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about).encode() + b"\n"


def _open(part: Path, name: str, mode: str) -> Any:
    return (part / name).open(mode)
