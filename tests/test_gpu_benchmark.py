"""The script that judges a GPU runs on a CPU: every check holds, every part of it measures."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import DEADLINE_S

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch compiles for CPUs with a C++ compiler"
)
def test_every_check_holds_and_every_part_measures():
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--presets", "base", "--variants", "eager"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    checks = re.findall(r"^\| ([^|]+) \| (ok|WRONG) \|", done.stdout, re.MULTILINE)
    assert len(checks) == 13
    assert {verdict for _, verdict in checks} == {"ok"}
    parts = re.findall(r"^part (\w+): (\w+)", done.stdout, re.MULTILINE)
    assert parts == [
        (name, "ok") for name in ("correctness", "throughput", "optimizers", "modalities", "loader", "steps", "losses")
    ]


def test_a_check_that_does_not_hold_is_said_and_the_others_run():
    code = (
        "import gpu_correctness as g\n"
        "def wrong(device): assert 1 + 1 == 3, 'two'\n"
        "def bounded(device): return g.bounded({'x': 2.0}, 1.0)\n"
        "g.CHECKS = {'first': wrong, 'second': bounded, 'third': lambda device: 'fine'}\n"
        "raise SystemExit(0 if g.run_checks('cpu') else 7)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "| first | WRONG | AssertionError: two |" in done.stdout
    assert "| second | WRONG | AssertionError: x 2.0e+00; x is above 1e+00 |" in done.stdout
    assert "| third | ok | fine |" in done.stdout
