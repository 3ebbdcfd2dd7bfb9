"""What the benchmarks against open_clip share: the same random weights in both, and what was measured on what."""

from __future__ import annotations

import logging
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import open_clip
import torch

from multicoca.api import MultiCoCa
from multicoca.convert.models import convert_open_clip


def coca_pair(name: str) -> tuple[torch.nn.Module, MultiCoCa]:
    """Builds open_clip's CoCa and the same one here; its caption head, which it leaves as memory was, is filled."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name)
    head = theirs.text_decoder.text_projection
    torch.nn.init.normal_(head, std=4 * head.shape[0] ** -0.5)  # so that some words are clearly likelier than others
    return theirs, convert_open_clip(theirs.state_dict())


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Runs all functions in turn, `rounds` times after one to warm up; returns the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def print_about() -> None:
    """Prints commit, hardware, versions and command."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "open_clip_torch"))
    print(f"commit {commit}; {cpu}; Python {platform.python_version()}, {packages}")
    print(f"command: python {' '.join(sys.argv)}\n")
