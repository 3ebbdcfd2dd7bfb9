"""A run's scalars, twice: TensorBoard's event files, and `scalars.jsonl` with a line for each write.

A run that resumes writes the steps after its checkpoint again. What was written of them before is removed or hidden,
so that both are those of a run that was never stopped. TensorBoard reads event files in the order of their names, which
begin with the time; the first event of each file hides later steps of the files before it. With a clock that was set
back the new file would come first and an older one would hide its curves, so older ones are renamed.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from multicoca.files import naming, write_text

SCALARS, EVENTS = "scalars.jsonl", "tensorboard"
_EVENT_FILE = re.compile(r"(events\.out\.tfevents\.)(\d+)(\..+)")


class ScalarWriter(SummaryWriter):
    """A SummaryWriter whose scalars are also JSON lines, strict ones: NaN and infinite numbers are strings.

    Args:
        folder: of the run.
        first: the step at which this process starts; what was written of later ones is removed.
    """

    def __init__(self, folder: Path, first: int):
        events = folder / EVENTS
        keep_order(events, int(time.time()))
        # TensorBoard forgets what an earlier process wrote of the step `purge_step` and later ones
        super().__init__(str(events), purge_step=first + 1)
        _forget_later(folder / SCALARS, first)
        self._lines = (folder / SCALARS).open("a", encoding="utf-8")
        self._step: int | None = None
        self._values: dict[str, float | str] = {}

    def add_scalar(
        self, tag: str, scalar_value: Any, global_step: int | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Writes a scalar; those of a step that come one after the other are one line."""
        super().add_scalar(tag, scalar_value, global_step, *args, **kwargs)
        if global_step != self._step:
            self.end_line()
        number = float(scalar_value)
        self._step, self._values[tag] = global_step, number if math.isfinite(number) else str(number)

    def end_line(self) -> None:
        """Writes the line that is pending."""
        if self._values:
            line = {"step": self._step, "time": round(time.time(), 3), **self._values}
            with naming(Path(self._lines.name)):
                self._lines.write(json.dumps(line, allow_nan=False) + "\n")
                self._lines.flush()  # a kill loses none that is written
        self._step, self._values = None, {}

    def flush(self) -> None:
        """Writes what is pending."""
        self.end_line()
        super().flush()

    def close(self) -> None:
        """Writes what is pending and closes all files."""
        self.end_line()
        self._lines.close()
        super().close()


def keep_order(folder: Path, now: int) -> None:
    """Renames event files so that the names of all come before that of a file which is made now."""
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir() if _EVENT_FILE.fullmatch(path.name))
    stamps = [int(_EVENT_FILE.fullmatch(name)[2]) for name in names]
    latest = now
    for place in reversed(range(len(names))):
        latest = stamps[place] = min(stamps[place], latest - 1)
    for name, stamp in zip(names, stamps, strict=True):  # the first one first, so that the order holds at all times
        begin, before, end = _EVENT_FILE.fullmatch(name).groups()
        if stamp != int(before):
            os.rename(folder / name, folder / f"{begin}{max(stamp, 0):010d}{end}")


def _forget_later(file: Path, first: int) -> None:
    """Takes lines of steps after `first`, and a torn one, out of a file of JSON lines."""
    if not file.is_file():
        return
    before = file.read_bytes()
    kept = [line for line in before.splitlines(keepends=True) if (step := _step_of(line)) is not None and step <= first]
    if (after := b"".join(kept)) != before:
        write_text(file, after.decode())


def _step_of(line: bytes) -> int | None:
    """Returns the step of a line, or None where it is torn."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
