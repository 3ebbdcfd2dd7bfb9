"""Fuzzes every reader: `python -m fuzz --seconds 120` in tests/, or `--files 2000 --suffix .ply`.

Hypothesis draws mutations of clean files and makes a failing one smaller. It is kept under tests/cases/fuzz/, where
`tests/test_fuzz.py` reads it again ever after.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from fuzz.checks import ViolationError, check
from fuzz.mutations import mutated, recipes
from fuzz.seeds import SUFFIXES, seeds

KEPT = Path(__file__).parent.parent / "cases" / "fuzz"
_QUIET = {"suppress_health_check": list(HealthCheck), "print_blob": False, "report_multiple_bugs": False}
_ROUND = 25  # files of a kind before the next kind has its turn


def fuzz(suffix: str, count: int, number: int) -> tuple[int, str]:
    """Reads mutated files of a kind.

    Args:
        suffix: the kind, one of SUFFIXES.
        count: how many files.
        number: what the mutations are drawn from.

    Returns:
        (how many were read and not refused, what went wrong or "").
    """
    clean = seeds(suffix)
    read, failing = 0, b""

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, **_QUIET)
    @given(recipes)
    def attempt(recipe):
        nonlocal read, failing
        failing = mutated(clean, recipe)
        read += check(failing, suffix)

    for data in clean:
        if not check(data, suffix):
            return read, f"a clean {suffix} file was refused"
    try:
        attempt()
    except ViolationError as error:
        KEPT.mkdir(parents=True, exist_ok=True)
        name = KEPT / f"{hashlib.sha256(failing).hexdigest()[:12]}{suffix.replace(' ', '_')}"
        name.write_bytes(failing)
        return read, f"{error}; kept as {name}"
    return read, ""


def main() -> int:
    """Runs the command; exit status 1 when a file broke a promise."""
    parser = argparse.ArgumentParser("fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, help="for all kinds together")
    parser.add_argument("--files", type=int, help="of each kind")
    parser.add_argument("--suffix", action="append", choices=SUFFIXES, help="these kinds alone")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what the mutations are drawn from")
    options = parser.parse_args()
    kinds, failures = options.suffix or SUFFIXES, []
    done, read = Counter(), Counter()
    end = time.monotonic() + (options.seconds or (float("inf") if options.files else 120.0))
    print(f"seed {options.seed}", flush=True)
    for turn, suffix in ((turn, suffix) for turn in itertools.count() for suffix in kinds):
        if time.monotonic() > end or (options.files and all(done[kind] >= options.files for kind in kinds)):
            break
        own, problem = fuzz(suffix, _ROUND, options.seed + turn)
        done[suffix] += _ROUND
        read[suffix] += own
        if problem:
            failures.append(problem)
            print(f"FAILED {problem}", flush=True)
    for suffix in kinds:
        print(f"{suffix:<12}{done[suffix]:>7} files, {read[suffix]:>6} read, the others refused")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
