"""Runs `multicoca` in a process of its own, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from patience import DEADLINE_S


def multicoca(folder: Path, *arguments: object, status: int = 0) -> str:
    """Runs a command in a folder that also holds its cache; returns what it printed on both streams."""
    command = [sys.executable, "-m", "multicoca.cli.main", *map(str, arguments)]
    environment = {**os.environ, "MULTICOCA_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == status, f"{' '.join(command[3:])}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
