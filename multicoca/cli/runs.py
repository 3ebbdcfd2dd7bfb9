"""A run's folder: one process at a time, and one configuration for all its starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from multicoca.config import Config, to_yaml
from multicoca.files import write_text

# what may differ when a run goes on: where and how it runs, not what it computes
_FREE = (
    "fresh", "output", "parallel.", "data.workers", "data.max_broken_share", "train.cpu_processes", "train.log_every",
    "train.checkpoint_every", "train.keep_last", "train.keep_every", "train.evaluate_every", "train.max_bad_steps",
    "train.profile_",
)  # fmt: skip


@contextmanager
def opened_run(folder: Path, config: Config) -> Iterator[None]:
    """Makes a run's folder, or checks that an earlier run in it had the same configuration; holds it till the end.

    Raises:
        ValueError: another process is at work in it, or it holds a run with another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=5)  # a killed run's lock is free at once; a restarted one may have to wait a moment
    except Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}; wait for its end, or give this run another name (name=...)"
        ) from error
    try:
        if config.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        saved, text = folder / "config.yaml", to_yaml(config)
        if saved.is_file():
            _check(folder, yaml.safe_load(saved.read_text(encoding="utf-8")), yaml.safe_load(text))
        write_text(saved, text)
        yield
    finally:
        lock.release()


def _check(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changes = [
        f"{key}: {old.get(key, 'absent')} then, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(_FREE)
    ]
    if changes:
        raise ValueError(
            f"{folder} holds a run with another configuration:\n  " + "\n  ".join(changes) + "\n"
            "Give this one another name (name=...), or delete the earlier one with fresh=true."
        )


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of all that is not a mapping."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
