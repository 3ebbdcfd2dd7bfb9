"""Processors that break the contract: with broken files, with what they have read, with thumbnails."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multicoca_signal import SignalProcessor
from PIL import Image
from small_signal import check, write_signals

from multicoca.modality import UnreadableFileError
from multicoca.reading import refuse_broken


@pytest.fixture(scope="module")
def signals(tmp_path_factory) -> list[Path]:
    return write_signals(tmp_path_factory.mktemp("signals"))


# broken files


class _Careless(SignalProcessor):
    """Reads without a guard where `trust` says so."""

    def __init__(self, trust: Callable[[Path | bytes, bytes], bool], lazy: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "trust", trust)
        object.__setattr__(self, "lazy", lazy)

    def decode(self, file, suffix=""):
        return file if self.lazy else self._read(file)

    def preprocess(self, raw, train, generator):
        return super().preprocess(self._read(raw) if self.lazy else raw, train, generator)

    def thumbnail(self, raw):
        return super().thumbnail(self._read(raw) if self.lazy else raw)

    def _read(self, file):
        if isinstance(file, Path) and not file.exists():
            return np.load(file) if self.trust(file, b"") else super().decode(file)
        data = file if isinstance(file, bytes) else file.read_bytes()
        return np.load(io.BytesIO(data)) if self.trust(file, data) else super().decode(file)


def _missing(file, data) -> bool:
    return isinstance(file, Path) and not file.exists()


def _empty(file, data) -> bool:
    return isinstance(file, bytes) and data == b""


def _cut_path(file, data) -> bool:
    return isinstance(file, Path) and data.startswith(b"\x93NUMPY")


def _cut_bytes(file, data) -> bool:
    return isinstance(file, bytes) and len(data) > 100


@pytest.mark.parametrize("lazy", [False, True], ids=["decode", "preprocess"])
@pytest.mark.parametrize(
    ("trust", "message"),
    [
        (_missing, "a missing file raised FileNotFoundError"),
        (_empty, "an empty file, as bytes, raised EOFError"),
        (_cut_path, "the first 16 bytes of a file, as a path, raised ValueError"),
        (_cut_bytes, "the first .* bytes of a file, as bytes, raised ValueError"),
    ],
)
def test_other_exceptions_than_the_one_for_broken_files_are_found(trust, message, lazy, signals, monkeypatch):
    monkeypatch.setattr("pickle.dumps", lambda processor: processor)  # functions of a test cannot be pickled
    monkeypatch.setattr("pickle.loads", lambda processor: processor)
    with pytest.raises(AssertionError, match=f"{message}.*expected UnreadableFileError"):
        check(signals, processor=_Careless(trust, lazy))


class _RawFloats(SignalProcessor):
    """A format without a header: what is left of a cut file is still a signal."""

    def decode(self, file, suffix=""):
        with refuse_broken():
            data = file if isinstance(file, bytes) else file.read_bytes()
            return np.frombuffer(data[: len(data) // 4 * 4], "<f4").copy() if len(data) > 30 else self._refuse()

    def _refuse(self):
        raise UnreadableFileError("fewer than 30 bytes")


class _Lenient(_RawFloats):
    def _refuse(self):
        return np.zeros(64, np.float32)


def test_a_cut_file_may_be_readable_but_not_an_empty_one(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        (tmp_path / f"{index}.npy").write_bytes(rng.normal(size=1024).astype("<f4").tobytes())
    check(sorted(tmp_path.iterdir()), processor=_RawFloats())
    with pytest.raises(AssertionError, match="an empty file, as bytes, gave a sample"):
        check(sorted(tmp_path.iterdir()), processor=_Lenient())


# what decode gave


class _CentersInPlace(SignalProcessor):
    def preprocess(self, raw, train, generator):
        raw -= 0.5
        return super().preprocess(raw, train, generator)


class _ClipsInPlace(SignalProcessor):
    """The second call changes nothing more, so only the thumbnail shows it."""

    def preprocess(self, raw, train, generator):
        np.clip(raw, -1, 1, out=raw)
        return super().preprocess(raw, train, generator)


class _DrawsInPlace(SignalProcessor):
    def thumbnail(self, raw):
        raw /= np.abs(raw).max() / 2
        return super().thumbnail(raw)


class _RemarksInPlace(SignalProcessor):
    def remarks(self, raw):
        raw.sort()
        return [f"the least value is {raw[0]}"]


class _ShowsInPlace(SignalProcessor):
    def show(self, writer, tag, raw, step):
        raw *= 2
        writer.add_histogram(tag, raw, step)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (_CentersInPlace, "preprocess in evaluation changed what decode gave"),
        (_ClipsInPlace, "preprocess in training, thumbnail: one of these changed what decode gave"),
        (_DrawsInPlace, "thumbnail changed what decode gave"),
        (_RemarksInPlace, "remarks changed what decode gave"),
        (_ShowsInPlace, "show changed what decode gave"),
    ],
)
def test_a_change_of_what_decode_gave_is_found(processor, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, processor=processor())


class _Copies(SignalProcessor):
    def preprocess(self, raw, train, generator):
        return super().preprocess(np.clip(raw, -1, 1), train, generator)

    def remarks(self, raw):
        return [f"the least value is {np.sort(raw)[0]}"]

    def show(self, writer, tag, raw, step):
        writer.add_histogram(tag, 2 * raw, step)


def test_work_on_a_copy_is_legal(signals):
    check(signals, processor=_Copies())


# thumbnails


class _Draws(SignalProcessor):
    def __init__(self, picture: Any) -> None:
        super().__init__()
        object.__setattr__(self, "picture", picture)

    def thumbnail(self, raw):
        return self.picture


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("a picture", "thumbnail gave a builtins.str; it must be a PIL picture"),
        (Image.new("L", (8, 8)), "mode L; return picture.convert"),
        (Image.new("RGB", (0, 8)), "0 x 8 px; both must be at least 1"),
        (Image.new("RGB", (1920, 1080)), "1920 x 1080 px; it may have at most 1048576 pixels"),
    ],
)
def test_a_thumbnail_that_is_none_is_found(picture, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, processor=_Draws(picture))


@pytest.mark.parametrize("size", [(1, 1), (1224, 128)])
def test_tiny_thumbnails_and_strips_are_legal(size, signals):
    check(signals, processor=_Draws(Image.new("RGB", size)))


# what may be added


class _Known(SignalProcessor):
    """Keeps both optional promises."""

    objects = "an array [samples]"

    def suffix_of(self, head):
        return ".npy" if head.startswith(b"\x93NUMPY") else ""

    def takes(self, value):
        return isinstance(value, np.ndarray) and value.ndim == 1

    def decode(self, file, suffix=""):
        if isinstance(file, np.ndarray):
            return file.astype(np.float32)
        if not isinstance(file, (bytes, Path)):
            raise UnreadableFileError(f"got {type(file).__name__}; expected {self.objects}")
        return super().decode(file, suffix)


class _NeverKnows(_Known):
    def suffix_of(self, head):
        return ""


class _KnowsAll(_Known):
    def suffix_of(self, head):
        return ".npy"


class _KnowsAnother(_Known):
    def suffix_of(self, head):
        return ".jpg" if head.startswith(b"\x93NUMPY") else ""


class _TakesPaths(_Known):
    def takes(self, value):
        return super().takes(value) or isinstance(value, Path)


class _TakesNothing(_Known):
    def takes(self, value):
        return False


class _ChangesObjects(_Known):
    def decode(self, file, suffix=""):
        found = super().decode(file, suffix)
        return found / 2 if isinstance(file, np.ndarray) else found


class _LetsObjectsFail(_Known):
    def decode(self, file, suffix=""):
        return SignalProcessor.decode(self, file, suffix) if not self.takes(file) else super().decode(file, suffix)


class _SaysNothing(_Known):
    objects = ""


@pytest.mark.parametrize("processor", [_Known, _NeverKnows])
def test_optional_promises_that_are_kept_are_legal(processor, signals):
    check(signals, processor=processor())


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (_KnowsAll, "suffix_of.*gave '.npy'; expected one of"),
        (_KnowsAnother, "suffix_of.*gave '.jpg'; expected one of"),
        (_TakesPaths, "takes gave True for PosixPath"),
        (_TakesNothing, "takes gave False for what decode gave, ndarray"),
        (_ChangesObjects, "decode must take what it gave"),
        (_LetsObjectsFail, "an object of another kind raised AttributeError"),
        (_SaysNothing, "objects is empty"),
    ],
)
def test_an_optional_promise_that_is_broken_is_found(processor, message, signals):
    with pytest.raises(AssertionError, match=message):
        check(signals, processor=processor())
