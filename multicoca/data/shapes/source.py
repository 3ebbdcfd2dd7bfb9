"""The shapes world on disk: real files, written once, checked when used again.

Each split of each modality is a folder with its files and `metadata.jsonl`, the form of your own data. Training
scenes differ between modalities, so that nothing teaches which cloud belongs to which picture; test scenes are
the same in all. Files are written aside by all cores and renamed into place under a lock.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import get_args

from filelock import FileLock

from multicoca.data.order import keyed_number
from multicoca.data.sample import Item
from multicoca.data.shapes.language import captions_of
from multicoca.data.shapes.scene import Scene, Split, draw_scene
from multicoca.data.sources import Folder, Listing
from multicoca.modality import Processor, SceneRenderer
from multicoca.terminal import progress

_FORMAT = 4  # raise it when scenes, captions or files change, so that old folders are not used again
_MARKER = "multicoca.shapes"  # tells a scene of this world from whatever else a column `scene` may hold


class ShapesWorld:
    """Source of the built-in data.

    Args:
        train_items: training scenes of each modality.
        test_items: held-out scenes, the same for all modalities.
        composition_items: held-out scenes with pairs of colour and shape that never occur in training.
        captions_per_item: phrasings listed for a scene at the most.
        root: folder for the files; `~/.cache/multicoca/shapes` by default, or $MULTICOCA_CACHE/shapes.
    """

    def __init__(
        self,
        train_items: int,
        test_items: int,
        composition_items: int,
        captions_per_item: int,
        root: str | Path | None = None,
    ):
        cache = os.environ.get("MULTICOCA_CACHE", "~/.cache/multicoca")
        self.root = Path(root or Path(cache) / "shapes").expanduser()
        self.counts = {"train": train_items, "test": test_items, "composition": composition_items}
        self.captions_per_item = captions_per_item

    def list_items(self, processors: Mapping[str, Processor], seed: int) -> Listing:
        """Writes what is missing, checks what is there and lists all of it.

        Raises:
            ValueError: no modality can draw scenes; those that cannot have no items.
        """
        renderers = {name: own for name, own in processors.items() if isinstance(own, SceneRenderer)}
        if not renderers:
            raise ValueError(
                f"none of {', '.join(processors)} can draw the shapes world: their processors have no `render`; choose "
                "data of your own, for example data=folder data.root=FOLDER"
            )
        unable = "its processor has no `render`, so it cannot draw the shapes world"
        listing = Listing(skipped={name: unable for name in processors if name not in renderers})
        for modality, processor in renderers.items():
            for split, count in self.counts.items():
                folder = self._prepare(modality, processor, split, count, seed)
                own = Folder(folder).list_items({modality: processor}, seed)
                listing.splits.setdefault(split, {}).update(own.of(split))
                listing.listed.setdefault(split, {}).update(own.listed.get(split, {}))
                listing.problems.extend(own.problems)
                listing.roots.extend(own.roots)
        return listing

    def _prepare(self, modality: str, processor: SceneRenderer, split: str, count: int, seed: int) -> Path:
        """Returns the folder of a split, after writing it unless it is there and whole."""
        kind = f"{type(processor).__module__}.{type(processor).__qualname__}"
        sample = processor.render(draw_scene(seed, "train", 0))
        state = (_FORMAT, kind, modality, seed, count, self.captions_per_item, blake2b(sample).hexdigest())
        folder = self.root / f"{split}-{modality}-{keyed_number(*map(str, state)):016x}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder, count):
                _write(folder, modality, processor, split, count, seed, self.captions_per_item)
        return folder


def scene_of(item: Item) -> Scene | None:
    """Returns the scene that an item shows, or None when it does not come from the shapes world."""
    match item.extra.get("scene"):
        case [marker, int(seed), str(split), int(index)] if marker == _MARKER and split in get_args(Split):
            return draw_scene(seed, split, index)
    return None


def _scene_index(modality: str, split: str, index: int) -> int:
    """Test scenes are shared; training scenes of modalities come from streams that never meet."""
    return index if split != "train" else (keyed_number(modality) % 2**31 << 32) + index


def _write(
    folder: Path, modality: str, processor: SceneRenderer, split: str, count: int, seed: int, captions: int
) -> None:
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.mkdir()
    jobs = [(aside, processor, seed, split, _scene_index(modality, split, i), i, captions) for i in range(count)]
    with ProcessPoolExecutor() as pool, (aside / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        lines = pool.map(_write_one, jobs, chunksize=max(1, min(64, count // 16)))
        for line in progress(lines, total=count, desc=f"writing {split} {modality}", unit="file"):
            metadata.write(json.dumps(line) + "\n")
    aside.rename(folder)


def _write_one(job: tuple[Path, SceneRenderer, int, str, int, int, int]) -> dict:
    """Writes one file and returns its line of the metadata."""
    folder, processor, seed, split, scene_index, index, captions = job
    scene = draw_scene(seed, split, scene_index)
    content = processor.render(scene)
    name = f"{index:06d}{processor.scene_suffix}"
    (folder / name).write_bytes(content)
    return {
        "file_name": name,
        "text": captions_of(scene, processor.scene_facts, captions),
        "split": split,
        "key": f"{split}/{index:06d}",
        "scene": [_MARKER, seed, split, scene_index],
        "digest": blake2b(content, digest_size=8).hexdigest(),
    }


def _is_whole(folder: Path, count: int) -> bool:
    """Whether every file of the folder is there with the content that was written."""
    try:
        lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        return len(lines) == count and all(
            blake2b((folder / line["file_name"]).read_bytes(), digest_size=8).hexdigest() == line["digest"]
            for line in lines
        )
    except (OSError, ValueError, LookupError, TypeError):  # missing, or not what was written
        return False
