"""Runs a decoder in a process that can be lost, for native code that may abort or run for ever on a broken file.

One such process serves this one. It imports neither torch nor a model, starts with the first call, and is replaced
when a file has killed it or was not done in time: that file is then unreadable, and nothing else is lost. It is a plain
subprocess with two pipes, because data workers are daemonic and may not have children of `multiprocessing`.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import select
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from multicoca.reading import UnreadableFileError, describe

DEFAULT_TIMEOUT_S = 10.0
_BYTES_PER_S = 2**20  # what the slowest decoder reads in a second; a large file gets more time
_START_TIMEOUT_S = 120.0  # to import a decoder on a busy machine
_SHORT_S = 0.2
_PIPE_BYTES = 2**20
_KEPT_BYTES = 2**23  # of memory for arrays that stays between answers
_LEAST_MEMORY = 2**30
_MEMORY_PER_BYTE = 64  # of the file; text meshes grow most

_lock = threading.Lock()
_timeout_s = DEFAULT_TIMEOUT_S
_process: _Process | None = None


def set_decode_timeout(seconds: float) -> None:
    """Sets the time limit of isolated decoders in this process: `seconds`, and one more for each MiB of a file."""
    global _timeout_s
    _timeout_s = seconds


def decode_timeout() -> float:
    """Returns what `set_decode_timeout` has set."""
    return _timeout_s


def run_isolated(target: str, *arguments: Any, file_bytes: int) -> Any:
    """Calls a function in the decoding process.

    Args:
        target: "module:function"; importing it should not import torch.
        arguments: of the function, which are pickled, as its result is.
        file_bytes: size of the file, from which the limits of time and memory follow.

    Raises:
        UnreadableFileError: the function raised it, ended the process, or took too long or too much memory.
        ImportError: the function raised it.
    """
    with _lock:
        process = _running()
        if target not in process.imported:
            process.send(("import", target), _START_TIMEOUT_S)
            process.imported.add(target)
        limit_s = _timeout_s + file_bytes / _BYTES_PER_S
        memory = _LEAST_MEMORY + _MEMORY_PER_BYTE * file_bytes
        return process.send(("call", target, arguments, memory), limit_s)


def _running() -> _Process:
    """Returns the decoding process of this process (a fork does not share its parent's)."""
    global _process
    if _process is not None and _process.owner == os.getpid() and not _process.is_alive():  # the system ended it
        _process.end()
        _process = None
    if _process is None or _process.owner != os.getpid():
        _process = _Process()
    return _process


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread that is not in the fork may hold the lock
    os.register_at_fork(after_in_child=_forget_lock)


class _Process:
    """The subprocess, seen from outside.

    Attributes:
        owner: the process that started it.
        imported: targets that it has imported.
    """

    def __init__(self) -> None:
        self.owner, self.imported = os.getpid(), set[str]()
        self._buffers = os.memfd_create("multicoca") if hasattr(os, "memfd_create") else -1
        # -c and not -m: nothing but what is needed is imported, in any working directory
        code = f"import sys; sys.path[:] = {sys.path!r}; from multicoca.isolated import serve; serve({self._buffers})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=() if self._buffers < 0 else (self._buffers,),
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        _widen(self._child.stdin)
        _widen(self._child.stdout)
        atexit.register(self.end)

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def send(self, message: tuple[Any, ...], limit_s: float) -> Any:
        """Sends a request and returns its answer."""
        late = threading.Event()
        timer = None
        try:
            pickle.dump(message, self._child.stdin, protocol=5)
            self._child.stdin.flush()
            if not _is_ready(self._child.stdout, _SHORT_S):  # most answers come before a timer would have started
                timer = threading.Timer(limit_s, lambda: (late.set(), self._child.kill()))
                timer.daemon = True
                timer.start()
            done, answer = _loaded(self._child.stdout, self._buffers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.end()
            if late.is_set():
                raise UnreadableFileError(
                    f"its decoder was not done after {limit_s:.3g} s and was stopped; "
                    "data.decode_timeout_s sets how long it may take"
                ) from error
            raise UnreadableFileError(
                f"its decoder ended the process that it runs in ({_status(self._child.returncode)})"
            ) from error
        except BaseException:  # an interrupt between request and answer: the next one would get this answer
            self.end()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if done:
            return answer
        raise answer

    def end(self) -> None:
        """Ends the subprocess and closes its pipes, in the process that started it."""
        if self.owner == os.getpid():
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with suppress(OSError):  # what was left in its buffer goes nowhere
                    pipe.close()
            if self._buffers >= 0:
                os.close(self._buffers)
                self._buffers = -1
            atexit.unregister(self.end)


def _is_ready(pipe: IO[bytes], seconds: float) -> bool:
    """Whether a pipe has something to read within a time; False where the system cannot tell."""
    if sys.platform == "win32":
        return False
    return bool(select.select([pipe], [], [], seconds)[0])


def _widen(pipe: IO[bytes]) -> None:
    """Lets a pipe hold a clip, so that writer and reader need not take turns; Linux alone can."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # the user has as much of it as he may
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _status(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


def _dump(answer: tuple[bool, Any], pipe: IO[bytes], buffers: int) -> None:
    """Writes an answer; arrays go through a file in memory where there is one, which is quicker than a pipe."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(answer, protocol=5, buffer_callback=arrays.append if buffers >= 0 else None)
    sizes, place = [], 0
    for array in arrays:
        raw = array.raw()
        while raw:  # a write may be cut short
            written = os.pwrite(buffers, raw, place)
            raw, place = raw[written:], place + written
        sizes.append(array.raw().nbytes)
    pickle.dump((content, sizes), pipe, protocol=5)
    pipe.flush()


def _loaded(pipe: IO[bytes], buffers: int) -> tuple[bool, Any]:
    """Reads what `_dump` wrote."""
    content, sizes = pickle.load(pipe)
    arrays, place = [], 0
    for size in sizes:
        array = memoryview(bytearray(size))
        done = 0
        while done < size:
            read = os.preadv(buffers, [array[done:]], place + done)
            if read == 0:
                raise EOFError("the decoding process wrote less than it says")
            done += read
        arrays.append(array)
        place += size
    if place > _KEPT_BYTES:
        os.ftruncate(buffers, 0)
    return pickle.loads(content, buffers=arrays)


def serve(buffers: int) -> None:
    """Answers requests on standard input until it is closed; what decoders print goes nowhere.

    Args:
        buffers: a file in memory for arrays; -1 where there is none.
    """
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not answer
    while True:
        try:
            kind, target, *rest = pickle.load(requests)
        except EOFError:
            return
        try:
            module, _, name = target.partition(":")
            function = getattr(importlib.import_module(module), name)
            answer = (True, _limited(function, *rest) if kind == "call" else None)
        except (UnreadableFileError, ImportError) as error:
            answer = (False, type(error)(str(error)))
        except Exception as error:  # any exception of a reader is a problem of its file
            answer = (False, UnreadableFileError(describe(error)))
        _dump(answer, answers, buffers)


def _limited(function: Any, arguments: tuple[Any, ...], memory: int) -> Any:
    """Calls a function that may take at most `memory` bytes more than the process has now, where there is a limit."""
    if sys.platform != "linux":
        return function(*arguments)
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + memory if most == resource.RLIM_INFINITY else min(taken + memory, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
