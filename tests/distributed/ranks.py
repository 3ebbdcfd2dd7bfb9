"""Runs a worker script as the ranks of a gloo group, with a deadline."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from patience import DEADLINE_S

TESTS = Path(__file__).parents[1]


def run_ranks(
    worker: Path, world_size: int, *arguments: str, deadline_s: float = DEADLINE_S, statuses: list[int] | None = None
) -> None:
    """Returns when all ranks have ended well, or with these statuses; a rank that fails or hangs is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    paths = (TESTS, TESTS / "train", TESTS / "distributed")
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(map(str, paths))}
    ranks = [
        subprocess.Popen([sys.executable, str(worker), *arguments], env={**shared, "RANK": str(rank)})
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(deadline_s) for process in ranks] == (statuses or [0] * world_size)
    finally:
        for process in ranks:
            process.kill()
