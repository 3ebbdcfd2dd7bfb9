"""Runs `multicoca` in a process of its own, as a user does."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from patience import DEADLINE_S


def multicoca(folder: Path, *arguments: object, status: int = 0) -> str:
    """Runs a command in a folder that also holds its cache; returns what it printed on both streams."""
    command = [sys.executable, "-m", "multicoca.cli.main", *map(str, arguments)]
    environment = {**os.environ, "MULTICOCA_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == status, f"{' '.join(command[3:])}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def wait_for_a_step(process: subprocess.Popen, log: Path) -> None:
    """Returns when a run of 100,000 steps says in its log that it has done some."""
    until = time.monotonic() + DEADLINE_S
    while not re.search(r"[1-9]\d*/100000", log.read_text()):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.1)
