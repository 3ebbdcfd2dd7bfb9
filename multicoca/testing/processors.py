"""The checks of a processor: what it reads, what it refuses, and that it never changes what it has read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from multicoca.modality import (
    HEAD_BYTES,
    ContentRecognizer,
    Finisher,
    ObjectReader,
    Processor,
    Remarker,
    TensorBoardViewer,
    UnreadableFileError,
    finished,
)
from multicoca.testing.comparison import Collate, assert_same_sample

_NO_FILE = b"this is no such file"
_THUMBNAIL_PIXELS = 1024 * 1024  # a report holds dozens; a strip of frames may be long but is then low


def check_processor(processor: Processor, files: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Returns the samples of all files, as in evaluation."""
    assert all(s == s.lower() and s.startswith(".") for s in processor.suffixes), (
        f"suffixes are {processor.suffixes}; each must be in lower case and begin with a dot"
    )
    for file in files:
        assert file.suffix.lower() in processor.suffixes, f"the suffix of {file} is not in {processor.suffixes}"
    samples = [_sample(processor, processor.decode(file)) for file in files]
    restored = pickle.loads(pickle.dumps(processor))  # what data workers do
    for file, sample in zip(files, samples, strict=True):
        _check_raw_is_left_alone(processor, file, sample)
        raw = processor.decode(file)
        first, again = (restored.preprocess(raw, True, torch.Generator().manual_seed(5)) for _ in range(2))
        assert_same_sample(again, first, "the same generator must give the same training sample")
        other = processor.preprocess(raw, False, torch.Generator().manual_seed(2))
        assert_same_sample(other, sample, "a sample for evaluation must not depend on the generator")
        from_bytes = _sample(processor, processor.decode(file.read_bytes(), file.suffix))
        assert_same_sample(from_bytes, sample, "a file and its bytes must give the same sample")
        if isinstance(processor, ContentRecognizer):
            _check_recognition(processor, file, sample)
        if isinstance(processor, ObjectReader):
            _check_objects(processor, file, sample)
        _check_thumbnail(processor.thumbnail(raw))
    for file in {file.suffix.lower(): file for file in files}.values():
        _check_broken_files(processor, file)
    return samples


def check_finishing(processor: Processor, samples: Sequence[dict[str, Tensor]]) -> Collate:
    """Finished inputs stay as they are, and the collated ones too; returns what gives the encoder's inputs."""
    if isinstance(processor, Finisher):
        collated, before = processor.collate(samples), processor.collate(samples)
        once = processor.finish(collated)
        assert_same_sample(collated, before, "finish changed the inputs that it was given. Work on a copy")
        assert_same_sample(processor.finish(once), once, "finish must leave as it is what is finished already")
    return lambda samples: finished(processor, processor.collate(samples))


def _sample(processor: Processor, raw: Any) -> dict[str, Tensor]:
    return processor.preprocess(raw, False, torch.Generator().manual_seed(1))


def _check_raw_is_left_alone(processor: Processor, file: Path, sample: dict[str, Tensor]) -> None:
    """Whatever is called with what `decode` gave, a later sample and thumbnail are those of a fresh one."""
    raw, before, same = (processor.decode(file) for _ in range(3))
    with TemporaryDirectory() as folder:
        for name, use in _uses(processor, Path(folder)):
            use(raw)
            assert_same_sample(
                _sample(processor, raw),
                sample,
                f"{name} changed what decode gave: the next sample for evaluation is another, expected the same. "
                "Work on a copy",
            )
    expected = processor.thumbnail(before)
    if expected == processor.thumbnail(same):  # else it draws at random, which is allowed
        assert processor.thumbnail(raw) == expected, (
            f"{', '.join(name for name, _ in _uses(processor, file))}: one of these changed what decode gave: the next "
            "thumbnail is another, expected the same. Work on a copy"
        )


def _uses(processor: Processor, folder: Path) -> list[tuple[str, Callable[[Any], object]]]:
    """Returns all that the project calls with what `decode` gave, by name."""
    uses: list[tuple[str, Callable[[Any], object]]] = [
        ("preprocess in evaluation", lambda raw: _sample(processor, raw)),
        ("preprocess in training", lambda raw: processor.preprocess(raw, True, torch.Generator().manual_seed(1))),
        ("thumbnail", processor.thumbnail),
    ]
    if isinstance(processor, Remarker):
        uses.append(("remarks", processor.remarks))
    if isinstance(processor, TensorBoardViewer):

        def show(raw: Any) -> None:
            with SummaryWriter(folder) as writer:
                processor.show(writer, "check", raw, 0)

        uses.append(("show", show))
    return uses


def _check_recognition(processor: Any, file: Path, sample: dict[str, Tensor]) -> None:
    """The first bytes give a suffix with which the bytes are read as the file is, or none."""
    data = file.read_bytes()
    for head, may_be_known in ((data[:HEAD_BYTES], True), (data[:3], True), (b"", False), (_NO_FILE, False)):
        suffix = processor.suffix_of(head)
        expected = ("", *processor.suffixes) if may_be_known else ("",)
        assert suffix in expected, f"suffix_of({head[:20]!r}) gave {suffix!r}; expected one of {expected}"
    suffix = processor.suffix_of(data[:HEAD_BYTES])
    if suffix:
        recognized = _sample(processor, processor.decode(data, suffix))
        assert_same_sample(recognized, sample, f"{suffix}, known by the first bytes, gives another sample of {file}")


def _check_objects(processor: Any, file: Path, sample: dict[str, Tensor]) -> None:
    """What `decode` gave is taken and gives the same sample; paths and bytes are no objects; others are refused."""
    assert isinstance(processor.objects, str), f"objects is {processor.objects!r}; expected what is taken, as a text"
    assert processor.objects, "objects is empty; expected what is taken, as a text"
    raw = processor.decode(file)
    assert processor.takes(raw) is True, (
        f"takes gave {processor.takes(raw)!r} for what decode gave, {type(raw).__name__}; expected True"
    )
    again = _sample(processor, processor.decode(raw))
    assert_same_sample(again, sample, "decode must take what it gave and give the same sample")
    for value in (file, str(file), file.read_bytes(), None, object()):
        taken = processor.takes(value)
        assert taken is False, f"takes gave {taken!r} for {type(value).__name__}; expected False"
    _check_refusal(processor, "an object of another kind", object(), "", may_be_read=False)


def _check_thumbnail(picture: Any) -> None:
    kind = type(picture)
    assert isinstance(picture, Image.Image), (
        f"thumbnail gave a {kind.__module__}.{kind.__name__}; it must be a PIL picture, see PIL.Image.fromarray"
    )
    assert picture.mode == "RGB", f"thumbnail gave a picture of mode {picture.mode}; return picture.convert('RGB')"
    width, height = picture.size
    assert min(width, height) >= 1, f"thumbnail gave a picture of {width} x {height} px; both must be at least 1"
    assert width * height <= _THUMBNAIL_PIXELS, (
        f"thumbnail gave a picture of {width} x {height} px; it may have at most {_THUMBNAIL_PIXELS} pixels. "
        "Reduce it, for example by picture.thumbnail((160, 160))"
    )


def _check_broken_files(processor: Processor, file: Path) -> None:
    """A file that is missing, empty, cut or of another kind is refused; a cut one may also give a sample."""
    whole = file.read_bytes()
    contents = {"an empty file": b"", "a file of another kind": _NO_FILE}
    cuts = {f"the first {size} bytes of a file": whole[:size] for size in (16, 64, len(whole) // 2)}
    with TemporaryDirectory() as folder:
        missing = Path(folder) / f"missing{file.suffix}"
        _check_refusal(processor, "a missing file", missing, "", may_be_read=False)
        for number, (what, data) in enumerate((contents | cuts).items()):
            may_be_read = what in cuts
            if may_be_read and data == whole:
                continue
            path = Path(folder) / f"{number}{file.suffix}"
            path.write_bytes(data)
            _check_refusal(processor, f"{what}, as bytes,", data, file.suffix, may_be_read)
            _check_refusal(processor, f"{what}, as a path,", path, "", may_be_read)


def _check_refusal(processor: Processor, what: str, file: Any, suffix: str, may_be_read: bool) -> None:
    fix = "Read inside `with multicoca.reading.refuse_broken():`, in preprocess too if it reads"
    try:
        sample = _sample(processor, processor.decode(file, suffix))
    except UnreadableFileError:
        return
    except ImportError:  # a package is missing, no file is broken
        raise
    except Exception as error:
        raise AssertionError(
            f"{what} raised {type(error).__name__} ({error}); expected UnreadableFileError with the reason. {fix}"
        ) from error
    assert may_be_read, f"{what} gave a sample; expected UnreadableFileError from decode or preprocess"
    is_sample = isinstance(sample, dict) and all(isinstance(value, Tensor) for value in sample.values())
    assert is_sample, (
        f"{what} gave {type(sample).__name__}; expected a sample, a dict of tensors, or UnreadableFileError. {fix}"
    )
