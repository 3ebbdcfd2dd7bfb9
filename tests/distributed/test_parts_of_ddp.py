"""Steps with parts off in two processes: the engine's gradients are those of the model wrapped in torch's DDP."""

import os
import socket
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("parts_worker.py")
DEADLINE_S = 180


def test_every_case_gives_ddps_gradients():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tests = WORKER.parent.parent
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = f"{tests}:{tests / 'train'}"
    ranks = [subprocess.Popen([sys.executable, str(WORKER)], env={**shared, "RANK": str(rank)}) for rank in range(2)]
    try:
        assert [process.wait(DEADLINE_S) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
