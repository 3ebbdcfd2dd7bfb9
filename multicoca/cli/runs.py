"""A run's folder: one process at a time, and one configuration for all its starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from multicoca.config import Config, from_yaml, to_yaml
from multicoca.distributed.launch import is_restarted
from multicoca.files import write_text

# what may differ when a run goes on: where and how it runs, not what it computes
_FREE = (
    "fresh", "accept_changes", "output", "parallel.", "evaluation.", "data.workers", "data.max_broken_share",
    "data.decode_timeout_s",
    "train.cpu_processes", "train.log_every", "train.checkpoint_every", "train.keep_last", "train.keep_every",
    "train.evaluate_every", "train.max_bad_steps", "train.profile_",
)  # fmt: skip


@contextmanager
def opened_run(folder: Path, config: Config) -> Iterator[None]:
    """Makes a run's folder, or checks that an earlier run in it had the same configuration; holds it till the end.

    Raises:
        ValueError: the name is none for a folder, another process is at work in it, or it holds a run with another
            configuration, or something else that `fresh` would delete.
    """
    parts = Path(config.name).parts
    if not parts or Path(config.name).is_absolute() or ".." in parts:
        raise ValueError(f"name is '{config.name}'; expected the name of a folder below output, such as name=mine")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=5)  # a killed run's lock is free at once; a restarted one may have to wait a moment
    except Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}; wait for its end, or give this run another name (name=...)"
        ) from error
    try:
        saved, text = folder / "config.yaml", to_yaml(config)
        if config.fresh and not is_restarted():
            if any(folder.iterdir()) and not saved.is_file():
                raise ValueError(f"{folder} holds files but no run; fresh=true does not delete it, choose another name")
            shutil.rmtree(folder)
        if saved.is_file():
            before = _with_defaults(saved.read_text(encoding="utf-8"))
            _check(folder, before, yaml.safe_load(text), config.accept_changes)
        write_text(saved, text)
        yield
    finally:
        lock.release()


def _with_defaults(text: str) -> Mapping[str, Any]:
    """Returns a saved configuration with the defaults of settings that there were not when it was saved."""
    with suppress(ValueError):  # settings of it are gone; `_check` names them
        text = to_yaml(from_yaml(text))
    return yaml.safe_load(text)


def _check(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], accept: bool) -> None:
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changes = [
        f"{key}: {old.get(key, 'absent')} then, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent") and not key.startswith(_FREE)
    ]
    if not changes:
        return
    differences = f"{folder} holds a run with another configuration:\n  " + "\n  ".join(changes) + "\n"
    if not accept:
        raise ValueError(
            differences + "Give this one another name (name=...), go on nevertheless with accept_changes=true, or "
            "delete the earlier one with fresh=true."
        )
    print(differences + "It goes on with the new one.", flush=True)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of all that is not a mapping."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
