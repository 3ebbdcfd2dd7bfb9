"""What the benchmarks share: time in turns, peak memory, and what was measured on what."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Runs all functions in turn, `rounds` times after one to warm up; returns the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            _finish_gpu()
            start = time.perf_counter()
            function()
            _finish_gpu()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own[1:]) for name, own in times.items()}


def peak_mib(function: Callable[[], object], device: str = "cpu") -> float:
    """Returns the peak of memory while a function runs, above what was held before, in MiB.

    On a CPU it is that of the process, to be measured in one of its own (`in_own_process`) after a small run that
    loads what stays; on a GPU, that of torch's tensors.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status_kib("VmRSS")
    function()
    return (_status_kib("VmHWM") - before) / 1024


def in_own_process(script: str, *arguments: object) -> float:
    """Runs a script in a process that gives what it frees back at once; returns the last number it prints."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # a threshold that is set does not grow
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def print_about() -> None:
    """Prints commit, hardware, versions and command."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    hardware = f"{cpu}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "open_clip_torch"))
    print(f"commit {commit}; {hardware}; Python {platform.python_version()}, {packages}")
    print(f"command: python {' '.join(sys.argv)}\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _finish_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
