"""Several processes on the cores of one machine without GPUs, each on its own core.

For small models this is much faster than one process with several threads, which wait for each other after every
operation. The processes see what torchrun would tell them; on GPUs and clusters torchrun itself starts them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# a closed terminal sends SIGHUP; SIGUSR1 and SIGUSR2 are Slurm's, by agreement
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MAX_PROCESSES = 8  # beyond it, each more process costs more memory than it saves time
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE_S = 60.0  # for the others, once one process has ended with an error
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun's; the folders of a start's ranks lie side by side
_SAID = "said_"


def heeded_signals() -> list[signal.Signals]:
    """Returns the signals that end a run, but for those that this process ignores, as under nohup."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(usable_cores())


def usable_cores() -> frozenset[int]:
    """Returns the numbers of the cores that this process may use."""
    return frozenset(os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1))


def local_processes(requested: int | None, batch_size: int) -> int:
    """Returns how many processes to start: the largest number of cores that can share a batch equally.

    Args:
        requested: a number from the configuration, or None to choose.
        batch_size: pairs of a step over all processes.

    Raises:
        ValueError: the requested number cannot share the batch.
    """
    if requested is None:
        return max(n for n in range(1, min(available_cores(), _MAX_PROCESSES) + 1) if batch_size % n == 0)
    if requested < 1 or batch_size % requested:
        raise ValueError(f"train.cpu_processes is {requested}, which cannot share data.batch_size {batch_size} equally")
    return requested


def is_launched() -> bool:
    """Whether torchrun, or `run_processes`, has started this process."""
    return "RANK" in os.environ


def is_first() -> bool:
    """Whether this is rank 0, or the only process; known before ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def may_say(text: str) -> bool:
    """Whether this rank is the first on this machine to ask for a text, so that an error of all is printed once."""
    folder = _folder_of_ranks()
    if folder is not None:
        with suppress(FileNotFoundError, PermissionError):  # better twice than never
            try:
                digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
                os.close(os.open(folder / f"{_SAID}{digest[:32]}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return False
    return True


def has_failed(wait_s: float = 0.0) -> bool:
    """Whether a rank of this start on this machine has printed an error, or does so within `wait_s` seconds."""
    folder = _folder_of_ranks()
    until = time.monotonic() + wait_s
    while folder is not None:
        if any(folder.glob(f"{_SAID}*")):
            return True
        if time.monotonic() >= until:
            break
        time.sleep(0.1)
    return False


def _folder_of_ranks() -> Path | None:
    return Path(os.environ[_ERROR_FILE]).parent.parent if _ERROR_FILE in os.environ and is_launched() else None


def is_restarted() -> bool:
    """Whether torchrun or Slurm has started this run again by itself."""
    return any(int(os.environ.get(name, "0")) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def run_processes(arguments: list[str], count: int) -> int:
    """Runs `python arguments` `count` times as the ranks of one group and waits for all.

    Signals that end a run are passed on. When a process fails, the others are ended. They end with this process, too.

    Returns:
        The exit status of rank 0, or of the first that failed.
    """
    with tempfile.TemporaryDirectory(prefix="multicoca_ranks_") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        shared["OMP_NUM_THREADS"] = str(max(1, available_cores() // count))
        environments = [
            {**shared, "RANK": rank, "LOCAL_RANK": rank, _ERROR_FILE: str(Path(folder) / rank / "error.json")}
            for rank in map(str, range(count))
        ]
        return _run_all(arguments, environments)


def run_process(arguments: list[str]) -> int:
    """Runs `python arguments` as `run_processes` does, but alone and not as a rank.

    Returns:
        The exit status; 128 + the number of a signal that was passed on, even if the process was done all the same.
    """
    passed: list[int] = []
    status = _run_all(arguments, [{}], passed)
    return status or (128 + passed[-1] if passed else 0)


def _run_all(arguments: list[str], environments: Sequence[Mapping[str, str]], passed: list[int] | None = None) -> int:
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        for environment in environments
    ]

    def pass_on(number: int, interrupted: object) -> None:
        del interrupted
        if passed is not None:
            passed.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in heeded_signals()}
    try:
        return _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen]) -> int:
    failed: tuple[int, float] | None = None  # (status, when)
    while None in [process.poll() for process in ranks]:  # all of them: one that has ended must be noticed
        if failed is None:
            bad = next((process.returncode for process in ranks if process.returncode), None)
            failed = None if bad is None else (bad, time.monotonic())
            if failed is not None and failed[0] not in {128 + number for number in STOP_SIGNALS}:
                for process in ranks:
                    process.terminate()
        elif time.monotonic() - failed[1] > _GRACE_S:
            for process in ranks:
                process.kill()
        time.sleep(0.1)
    statuses = [process.returncode for process in ranks]
    status = failed[0] if failed else next((s for s in statuses if s), 0)
    return status if status >= 0 else 128 - status


def _end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when its parent ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
