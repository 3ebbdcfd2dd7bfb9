"""A rank that hangs ends the others with an error that names it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from patience import DEADLINE_S
from ranks import TESTS, run_ranks

WORKER = Path(__file__).with_name("hang_worker.py")


def test_a_rank_that_hangs_is_named_by_the_one_that_waits(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join((str(TESTS.parent), shared.get("PYTHONPATH", "")))
    command = [sys.executable, str(WORKER), str(tmp_path / "met")]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = ranks[0].communicate(timeout=DEADLINE_S)[1]
        assert (tmp_path / "met").is_file(), errors
        assert ranks[0].returncode not in (0, None)
        assert "rank 0 of 2 waited in vain" in errors, errors
        assert "Ranks 1 failed to pass monitoredBarrier" in errors, errors
        assert ranks[1].poll() is None  # it still hangs
    finally:
        for process in ranks:
            process.kill()
            process.wait()
            process.stderr.close()


def test_ranks_wait_for_the_first_one_however_long_it_takes():
    run_ranks(Path(__file__).with_name("patience_worker.py"), 2)
