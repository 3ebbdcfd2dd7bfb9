"""A decoding process that aborts, hangs, exhausts memory or raises costs one file and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from multicoca.data.sample import Item
from multicoca.isolated import decode_timeout, run_isolated, set_decode_timeout
from multicoca.reading import UnreadableFileError, refuse_broken

MIB = 2**20


@pytest.fixture
def short_timeout():
    """A decoder may take a second here."""
    before = decode_timeout()
    set_decode_timeout(1.0)
    yield
    set_decode_timeout(before)


def test_a_result_comes_back_and_the_process_serves_again():
    first, second = (run_isolated("os:getpid", file_bytes=0) for _ in range(2))
    assert first == second != os.getpid()


def test_a_process_that_ends_is_one_unreadable_file():
    with pytest.raises(UnreadableFileError, match=f"signal {int(signal.SIGABRT)}"):
        run_isolated("os:abort", file_bytes=0)
    assert run_isolated("os:getpid", file_bytes=0) != os.getpid()


def test_a_decoder_that_never_ends_is_stopped(short_timeout):
    started = time.perf_counter()
    with pytest.raises(UnreadableFileError, match="data.decode_timeout_s"):
        run_isolated("time:sleep", 600, file_bytes=0)
    assert time.perf_counter() - started < 60


def test_memory_beyond_the_limit_is_refused_and_the_next_file_is_read():
    with pytest.raises(UnreadableFileError, match="MemoryError"):
        run_isolated("builtins:bytearray", 3 * 2**30, file_bytes=0)
    assert len(run_isolated("builtins:bytearray", 10 * MIB, file_bytes=0)) == 10 * MIB


def test_any_exception_is_the_files_and_a_missing_package_is_not():
    with pytest.raises(UnreadableFileError, match="ZeroDivisionError"):
        run_isolated("operator:truediv", 1, 0, file_bytes=0)
    with pytest.raises(ImportError):
        run_isolated("no_such_package:decode", file_bytes=0)


def test_what_a_decoder_prints_is_no_answer():
    assert run_isolated("os:system", "echo printed", file_bytes=0) == 0


def test_threads_share_the_process():
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n, run_isolated("operator:mul", n, 2, file_bytes=0))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(n, 2 * n) for n in range(8)]


def test_a_fork_has_a_process_of_its_own():
    own = run_isolated("os:getpid", file_bytes=0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(run_isolated("os:getpid", file_bytes=0)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 20)) != own == run_isolated("os:getpid", file_bytes=0)


def test_it_neither_imports_torch_nor_outlives_its_parent():
    code = (
        "from multicoca.isolated import run_isolated\n"
        "print(run_isolated('builtins:eval', \"'torch' in __import__('sys').modules\", file_bytes=0))\n"
        "print(run_isolated('os:getpid', file_bytes=0), flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    has_torch, child = run.stdout.split()
    assert has_torch == "False"
    for _ in range(600):
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the decoding process outlives its parent")


class Stubborn:
    """A processor whose decoding fails in a way that nobody listed."""

    suffixes = (".x",)

    def __init__(self, error: BaseException):
        self.error = error

    def decode(self, file, suffix=""):
        raise self.error

    preprocess = collate = thumbnail = decode


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), RuntimeError("zip"), UnboundLocalError("x")])
def test_any_exception_of_a_reader_is_a_problem_of_its_file(tmp_path, error):
    item = Item("key", tmp_path / "a.x", "stub", ("text",))
    with pytest.raises(UnreadableFileError, match=type(error).__name__):
        item.sample(Stubborn(error), False)


def test_missing_packages_and_interrupts_are_no_problem_of_a_file():
    for error in (ImportError("package"), KeyboardInterrupt()):
        with pytest.raises(type(error)), refuse_broken("file"):
            raise error


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_many_lost_processes_leave_neither_open_files_nor_zombies():
    def held() -> tuple[int, int]:
        run_isolated("os:getpid", file_bytes=0)
        children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "stat="], capture_output=True, text=True)
        return len(os.listdir("/proc/self/fd")), children.stdout.count("Z")

    before = held()
    for number in range(10):
        if number % 2:
            with pytest.raises(UnreadableFileError):
                run_isolated("os:abort", file_bytes=0)
        else:  # between two files, as a system that is out of memory does
            lost = run_isolated("os:getpid", file_bytes=0)
            os.kill(lost, signal.SIGKILL)
            while not os.waitid(os.P_PID, lost, os.WEXITED | os.WNOWAIT):
                pass
    assert held() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_while_another_thread_decodes_does_not_wait_for_it():
    thread = threading.Thread(target=lambda: run_isolated("time:sleep", 3, file_bytes=0))
    run_isolated("os:getpid", file_bytes=0)
    thread.start()
    time.sleep(0.5)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if run_isolated("os:getpid", file_bytes=0) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_arrays_of_any_number_and_size_come_back_as_they_are_and_can_be_written():
    for shape in ((0,), (3, 5), (4, 1000, 1000, 3)):
        numpy = "__import__('numpy')"
        array = f"{numpy}.arange({np.prod(shape)}, dtype='u4').reshape({shape})"
        code = f"[{array}, 'text', {numpy}.eye(3).T]"
        first, text, last = run_isolated("builtins:eval", code, file_bytes=2**22)
        np.testing.assert_array_equal(first, np.arange(np.prod(shape), dtype="u4").reshape(shape))
        np.testing.assert_array_equal(last, np.eye(3))
        assert text == "text"
        first[...] = 0
    assert run_isolated("operator:add", 1, 2, file_bytes=0) == 3


def test_lost_processes_leave_no_open_files():
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    run_isolated("os:getpid", file_bytes=0)
    before = count()
    for _ in range(5):
        with pytest.raises(UnreadableFileError):
            run_isolated("os:abort", file_bytes=0)
    run_isolated("os:getpid", file_bytes=0)
    assert count() == before
