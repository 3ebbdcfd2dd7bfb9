"""A run's folder: one process at a time, one configuration and one set of items for all its starts.

Nothing is written or deleted before everything has been built, so that a mistake in a setting leaves the folder as it
was. A start that ended before its first checkpoint binds nobody: the next one begins anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout

from multicoca.config import Config, from_yaml, to_yaml
from multicoca.data.order import keyed_number
from multicoca.data.sample import Item
from multicoca.distributed.launch import is_restarted
from multicoca.files import write_text, written_aside
from multicoca.runs.model_folder import WEIGHTS
from multicoca.runs.start_from import leaves
from multicoca.train.checkpoint import newest_step
from multicoca.train.optim import scheduled_share

CONFIG, TOKENIZER, ITEMS = "config.yaml", "tokenizer.json", "items.npz"
# all that runs write; `fresh` deletes nothing else
_OUR_FILES = (
    CONFIG, TOKENIZER, ITEMS, "precision.txt", "ledger.jsonl", "scalars.jsonl", "results.json", "report.html",
    "checkpoints", "tensorboard", "profile", "model", "report",
)  # fmt: skip
# what may differ when a run goes on: where and how it runs, not what it computes
_FREE = (
    "fresh", "accept_changes", "output", "parallel.", "evaluation.", "data.workers", "data.max_broken_share",
    "data.decode_timeout_s",
    "train.cpu_processes", "train.log_every", "train.checkpoint_every", "train.keep_last", "train.keep_every",
    "train.evaluate_every", "train.max_bad_steps", "train.profile_",
)  # fmt: skip
_MOST_DIGESTS = 1_000_000
_NAMED = 3  # items that are named where many have come


class RunFolder:
    """The folder of a run that this process holds.

    Args:
        folder: where it is.
        config: of this start.

    Attributes:
        is_resumed: whether an earlier start of this run is continued.
    """

    def __init__(self, folder: Path, config: Config):
        self._folder, self._config = folder, config
        has_trained = (folder / "model").exists() or any((folder / "checkpoints").glob("*"))
        # items are noted by runs alone, so that no other folder with a config.yaml is taken for a run's first minutes
        was_begun = (folder / ITEMS).is_file() and not has_trained
        self._deletes = (config.fresh and not is_restarted()) or was_begun
        self.is_resumed = (folder / CONFIG).is_file() and not self._deletes

    def begin(self, tokenizer_json: str, items: Mapping[str, Sequence[Item]]) -> None:
        """Writes what all starts of this run share; called when everything has been built.

        Raises:
            ValueError: the run was begun with other training items.
        """
        if self._deletes:
            delete_run(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_items(items)
        if not self.is_resumed:
            write_text(self._folder / TOKENIZER, tokenizer_json)
        write_text(self._folder / CONFIG, to_yaml(self._config))

    def _check_items(self, items: Mapping[str, Sequence[Item]]) -> None:
        file = self._folder / ITEMS
        now = {name: _digests(own) for name, own in items.items()}
        if self.is_resumed and file.is_file():
            with np.load(file) as before:
                changes = [line for name in items for line in _item_changes(name, before, now[name], items[name])]
            if changes and not self._config.accept_changes:
                raise ValueError(
                    f"the training items of {self._folder} are not those it was begun with: {'; '.join(changes)}. "
                    "Bring the data back, give this run another name (name=...), or go on with accept_changes=true; "
                    "the order of the data is then another one"
                )
            for line in changes:
                print(f"training items have changed: {line}; the order of the data is another one now", flush=True)
        with written_aside(file) as aside, aside.open("wb") as out:
            np.savez(out, **now)


def _digests(items: Sequence[Item]) -> np.ndarray:
    """Returns the number of items and a digest of each key; of very many, of as many as are read in a moment."""
    chosen = (
        range(len(items)) if len(items) <= _MOST_DIGESTS else np.linspace(0, len(items) - 1, _MOST_DIGESTS, dtype=int)
    )
    return np.array([len(items), *(keyed_number(items[int(index)].key) for index in chosen)], np.uint64)


def _item_changes(modality: str, before: Mapping[str, Any], now: np.ndarray, items: Sequence[Item]) -> list[str]:
    """Returns what has come to and gone from a modality's items."""
    if modality not in before:
        return [f"{len(items)} {modality} items are new"]
    (old_count, *old), (count, *digests) = before[modality], now
    if max(old_count, count) > _MOST_DIGESTS:
        return [] if np.array_equal(before[modality], now) else [f"{old_count} {modality} items then, {count} now"]
    old, now, lines = np.array(old), np.array(digests), []
    came = np.flatnonzero(~np.isin(now, old))
    gone = int((~np.isin(old, now)).sum())
    if len(came):
        names = ", ".join(items[index].key for index in came[:_NAMED])
        lines.append(f"{len(came)} {modality} items are new ({names}{', ...' if len(came) > _NAMED else ''})")
    if gone:
        lines.append(f"{gone} {modality} items are gone")
    if not lines and not np.array_equal(old, now):
        lines.append(f"the {len(now)} {modality} items come in another order")
    return lines


def delete_run(folder: Path) -> None:
    """Deletes what runs write into their folder, and nothing else."""
    for path in (folder / name for name in _OUR_FILES):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def opened_run(folder: Path, config: Config) -> Iterator[RunFolder]:
    """Holds a run's folder till the end; checks that an earlier start had the same configuration.

    Raises:
        ValueError: the name is none for a folder, the folder is a model, another process is at work in it, or it holds
            a run with another configuration.
    """
    parts = Path(config.name).parts
    if not parts or Path(config.name).is_absolute() or ".." in parts:
        raise ValueError(f"name is '{config.name}'; expected the name of a folder below output, such as name=mine")
    if (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} is a model folder, not one for a run; give this run another name (name=...)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=5)  # a killed run's lock is free at once; a restarted one may have to wait a moment
    except Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}; wait for its end, or give this run another name (name=...)"
        ) from error
    try:
        run = RunFolder(folder, config)
        if run.is_resumed:
            _check(folder, (folder / CONFIG).read_text(encoding="utf-8"), config)
        yield run
    finally:
        lock.release()


def _check(folder: Path, saved: str, config: Config) -> None:
    """Compares the configuration of the earlier start with this one's."""
    before: Config | None = None
    with suppress(ValueError):  # settings of it are gone; the comparison names them
        before = from_yaml(saved)
    # settings that there were not when it was saved have their defaults
    old = dict(leaves(yaml.safe_load(saved if before is None else to_yaml(before))))
    new = dict(leaves(yaml.safe_load(to_yaml(config))))
    changes = [
        f"{key}: {old.get(key, 'absent')} then, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(_FREE)
    ]
    if not changes:
        return
    changes += [] if before is None else _rate_change(folder, before, config)
    differences = f"{folder} holds a run with another configuration:\n  " + "\n  ".join(changes) + "\n"
    if not config.accept_changes:
        raise ValueError(
            differences + "Give this one another name (name=...), go on nevertheless with accept_changes=true, or "
            "delete the earlier one with fresh=true."
        )
    print(differences + "It goes on with the new one.", flush=True)


def _rate_change(folder: Path, before: Config, now: Config) -> list[str]:
    """Says what the learning rate does at the step from which the run goes on, where that is something else now."""
    step = newest_step(folder / "checkpoints")
    if step is None:
        return []
    old, new = (each.optim.lr * scheduled_share(step, each.train.steps, each.optim) for each in (before, now))
    if old == new:
        return []
    return [f"so at step {step} the learning rate is {new:.3g}, where it was to be {old:.3g}"]
