"""Mutated files of every kind: what once broke a reader, and a few new ones. `tests/fuzz` is the command."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
for package in ("av", "trimesh", "plyfile", "pypcd4"):
    pytest.importorskip(package)

from fuzz import checks
from fuzz.__main__ import KEPT, fuzz
from fuzz.checks import ViolationError, check
from fuzz.seeds import SUFFIXES, seeds

from multicoca.reading import UnreadableFileError

HOSTILE = Path(__file__).parent / "cases" / "hostile"


def kind_of(path: Path) -> str:
    return path.suffix.replace("_", " ")


@pytest.mark.parametrize("path", sorted([*KEPT.glob("*"), *HOSTILE.glob("*")]), ids=lambda path: path.name)
def test_a_file_that_once_broke_a_reader_is_read_or_refused(path):
    check(path.read_bytes(), kind_of(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated_files_are_read_or_refused(suffix):
    _, problem = fuzz(suffix, 15, number=3)
    assert problem == ""


@pytest.mark.parametrize("error", [MemoryError, RecursionError, ValueError, UnboundLocalError])
def test_an_exception_that_escapes_a_reader_is_found(error, monkeypatch):
    def broken(data):
        raise error("escaped")

    monkeypatch.setitem(checks._READERS, ".xyz", broken)
    with pytest.raises(ViolationError, match=f"{error.__name__}: escaped"):
        check(b"1 2 3\n", ".xyz")
    monkeypatch.setitem(checks._READERS, ".xyz", lambda data: (_ for _ in ()).throw(UnreadableFileError("refused")))
    assert not check(b"1 2 3\n", ".xyz")


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".xyz", ".pts", ".npy", ".npz", ".obj", ".off", ".stl"])
def test_an_invented_point_is_found(suffix, monkeypatch):
    from multicoca_points import read_points
    from multicoca_points.cloud import PointCloud

    for data in seeds(suffix):
        cloud = read_points(data, suffix)
        xyz = cloud.xyz.copy()
        xyz[0] += (0.123456789, 0.2, 10.1)
        monkeypatch.setitem(checks._READERS, suffix, lambda _, xyz=xyz: PointCloud(xyz))
        with pytest.raises(ViolationError):
            check(data, suffix)


def test_a_reader_that_takes_too_long_or_too_much_is_found(monkeypatch):
    monkeypatch.setattr(checks, "MOST_SECONDS", -1.0)
    with pytest.raises(ViolationError, match="it took"):
        check(b"1 2 3\n", ".xyz")
    monkeypatch.setattr(checks, "MOST_SECONDS", 10.0)
    monkeypatch.setattr(checks, "MOST_BYTES", -1)
    with pytest.raises(ViolationError, match="MiB"):
        check(b"1 2 3\n", ".xyz")


def test_the_command_draws_other_files_with_another_seed():
    assert sys.modules["fuzz.__main__"].__doc__.startswith("Fuzzes every reader")
    first, second = (fuzz(".bmp", 30, number)[0] for number in (1, 2))
    assert fuzz(".bmp", 30, 1)[0] == first
    assert 0 < first < 30
    assert 0 < second < 30
