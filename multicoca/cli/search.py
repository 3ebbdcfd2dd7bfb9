"""`multicoca index MODEL FOLDER...` and `multicoca search INDEX QUERY`: find files by a sentence or by a file.

An index is a folder: `embeddings.bin` (fp32 rows of length 1), `files.jsonl` (a line for each row), `skipped.jsonl`
(files that could not be read, with the reason) and `index.json`. Rows are appended as they come, so that memory
does not grow with the number of files; it is written aside and renamed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from multicoca.api import MultiCoCa, load
from multicoca.data.sample import Problem

_ROWS_AT_ONCE = 65536  # of the index held in memory during a search


def run_index(arguments: list[str]) -> int:
    """Runs `multicoca index`."""
    parser = argparse.ArgumentParser(prog="multicoca index", description="Embeds files for search.")
    parser.add_argument("model", help="a model folder, or owner/name of the hub")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="folders (read recursively) or files")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("--batch-size", type=int, default=16, help="files encoded together (default: 16)")
    options = parser.parse_args(arguments)
    missing = [str(path) for path in options.paths if not path.exists()]
    if missing:
        raise ValueError(f"there is no {', '.join(missing)}")
    model = load(options.model)
    indexed, skipped = write_index(model, options.model, options.paths, options.out, options.batch_size)
    if not indexed:
        raise ValueError(f"no file under {', '.join(map(str, options.paths))} could be read ({skipped} skipped)")
    print(f"{indexed} files are in {options.out}; {skipped} were skipped, see {options.out / 'skipped.jsonl'}")
    return 0


def write_index(model: MultiCoCa, name: str, paths: list[Path], out: Path, batch_size: int) -> tuple[int, int]:
    """Embeds files into an index, which replaces an earlier one at the end; returns (indexed, skipped)."""
    if out.exists() and not (out / "index.json").is_file():
        raise ValueError(f"{out} exists and is not an index; give another --out or delete it")
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    indexed = skipped = 0
    with (
        (aside / "embeddings.bin").open("wb") as rows,
        (aside / "files.jsonl").open("w", encoding="utf-8") as files,
        (aside / "skipped.jsonl").open("w", encoding="utf-8") as problems,
    ):
        for file, found in tqdm(model.stream(_files(paths), batch_size), desc="indexing", unit="file"):
            if isinstance(found, Problem):
                problems.write(json.dumps({"file": str(file.resolve()), "reason": found.reason}) + "\n")
                skipped += 1
            else:
                rows.write(found.float().numpy().tobytes())
                files.write(json.dumps({"file": str(file.resolve()), "modality": model.modality_of(file)}) + "\n")
                indexed += 1
    width = model.bundle.network.config.embedding_width
    about = {"model": str(Path(name).resolve()) if Path(name).exists() else name, "width": width, "count": indexed}
    (aside / "index.json").write_text(json.dumps(about), encoding="utf-8")
    if indexed:
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)
    else:
        shutil.rmtree(aside)
    return indexed, skipped


def _files(paths: list[Path]) -> Iterator[Path]:
    """Yields the files below the paths in a fixed order, hidden ones left out."""
    for path in paths:
        if path.is_file():
            yield path
        else:
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("."))


def run_search(arguments: list[str]) -> int:
    """Runs `multicoca search`."""
    parser = argparse.ArgumentParser(prog="multicoca search", description="Finds files in an index.")
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("query", help="a sentence, or a file of any modality of the model")
    parser.add_argument("--top", type=int, default=10, help="how many files to list (default: 10)")
    parser.add_argument("--model", help="use this model folder instead of the one that wrote the index")
    options = parser.parse_args(arguments)
    if not (options.index / "index.json").is_file():
        raise ValueError(f"{options.index} is not an index; make one with: multicoca index MODEL FOLDER --out INDEX")
    about = json.loads((options.index / "index.json").read_text(encoding="utf-8"))
    model = load(options.model or about["model"])
    is_file = Path(options.query).is_file()
    query = (model.embed([options.query]) if is_file else model.embed_text([options.query]))[0].numpy()
    if len(query) != about["width"]:
        raise ValueError(f"the index has embeddings of width {about['width']}, the model gives {len(query)}")
    for similarity, line in search_index(options.index, query, about["count"], options.top):
        print(f"{similarity:.3f}\t{line['modality']}\t{line['file']}")
    return 0


def search_index(index: Path, query: np.ndarray, count: int, top: int) -> list[tuple[float, dict[str, str]]]:
    """Returns the `top` most similar files as (cosine similarity, line of files.jsonl), best first."""
    rows = np.memmap(index / "embeddings.bin", dtype=np.float32, mode="r", shape=(count, len(query)))
    scores = np.concatenate([rows[start : start + _ROWS_AT_ONCE] @ query for start in range(0, count, _ROWS_AT_ONCE)])
    best = np.argsort(-scores, kind="stable")[: max(0, top)]
    wanted = {int(row): place for place, row in enumerate(best)}
    lines: dict[int, dict[str, str]] = {}
    with (index / "files.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number in wanted:
                lines[wanted[number]] = json.loads(line)
    return [(float(scores[row]), lines[place]) for place, row in enumerate(best)]
