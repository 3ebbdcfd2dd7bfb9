"""`open_video`: the frames of a video file by index, whatever the file.

The decision: which backend reads is chosen per file and can be asked for. decord reads clean short clips; PyAV reads
everything, takes over when decord fails, and is what decord is tested against. Frames stay uint8, and only those
that are asked for are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from multicoca.reading import refuse_broken
from multicoca_video.frames_decord import DecordUnfitError, read_with_decord, reason_against_decord
from multicoca_video.frames_pyav import read_with_pyav
from multicoca_video.scan import MAX_PIXELS, Scan, scan_video

BACKENDS = ("decord", "pyav")
T = TypeVar("T")


class Video:
    """An open video file. It keeps no native handle between calls, so nothing needs to be closed.

    Attributes:
        num_frames: how many frames a player shows.
        duration_s: the end of the last frame.
        frame_times_s: float64 [num_frames], the real presentation times, the first is 0.
        backend: what reads the frames, "decord" or "pyav"; may change to "pyav" at the first read.
        backend_reason: why that one.
    """

    def __init__(self, source: Path | bytes, scan: Scan, backends: Sequence[str]) -> None:
        self._source = source
        self._scan = scan
        self.num_frames = len(scan.times_s)
        self.duration_s = scan.duration_s
        self.frame_times_s = scan.times_s
        reason = reason_against_decord(scan) if "decord" in backends else "decord is switched off"
        self.backend = "pyav" if reason else "decord"
        self.backend_reason = reason or "a clean short clip"

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads frames, in any order and with repeats; arguments and errors are those of `prepared`.

        Returns:
            uint8 array [frames, height, width, 3], RGB, upright.
        """
        return np.stack(self.prepared(indices, lambda picture: picture))

    def prepared(self, indices: Sequence[int] | np.ndarray, prepare: Callable[[np.ndarray], T]) -> list[T]:
        """Reads frames, in any order and with repeats, and keeps of each what is made of it.

        Args:
            indices: [frames], each from 0 to num_frames - 1.
            prepare: what is done to each picture, uint8 [height, width, 3], RGB, upright; called once for each
                different frame, in the order of the clip.

        Returns:
            What `prepare` gave, in the order of `indices`.

        Raises:
            UnreadableFileError: nothing could be decoded.
            IndexError: an index is outside the clip.
        """
        wanted, places = np.unique(checked_indices(indices, self.num_frames), return_inverse=True)
        with refuse_broken():
            found = self._read(wanted, prepare)
        return [found[place] for place in places.tolist()]

    def _read(self, wanted: np.ndarray, prepare: Callable[[np.ndarray], T]) -> list[T]:
        if self.backend == "decord":
            try:
                return [prepare(picture) for picture in read_with_decord(self._source, self._scan, wanted)]
            except DecordUnfitError as error:
                self.backend, self.backend_reason = "pyav", str(error)
        return read_with_pyav(self._source, self._scan, wanted, prepare)


def open_video(file: Path | bytes, backends: Sequence[str] = BACKENDS, max_pixels: int = MAX_PIXELS) -> Video:
    """Opens a video file.

    Args:
        file: a path, or the content of a file.
        backends: what may read it: ("decord", "pyav"), or ("pyav",) to leave decord out.
        max_pixels: a file with larger frames is refused by its header.

    Raises:
        UnreadableFileError: the file is missing, empty, not a video, too large, or nothing in it can be decoded.
        ValueError: `backends` names something else, or leaves out PyAV, which lists the frames of every file.
        ImportError: PyAV is not installed.
    """
    check_backends(backends)
    source = file if isinstance(file, bytes) else Path(file)
    with refuse_broken():
        return Video(source, scan_video(source, max_pixels), backends)


def checked_indices(indices: Sequence[int] | np.ndarray, num_frames: int) -> np.ndarray:
    """Returns frame indices as int64.

    Raises:
        IndexError: there is none, or one is outside the clip.
    """
    asked = np.asarray(indices, dtype=np.int64)
    if asked.size == 0 or asked.min() < 0 or asked.max() >= num_frames:
        raise IndexError(
            f"frame indices {asked.tolist()} do not fit a clip of {num_frames} frames; "
            f"give one or more from 0 to {num_frames - 1}"
        )
    return asked


def check_backends(backends: Sequence[str]) -> None:
    """Raises ValueError unless `backends` is one of the two combinations that `open_video` takes."""
    if sorted(backends) not in (["decord", "pyav"], ["pyav"]):
        raise ValueError(f"backends is {list(backends)}; expected ['decord', 'pyav'] or ['pyav']")
