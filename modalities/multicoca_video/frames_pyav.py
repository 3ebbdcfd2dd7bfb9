"""Reads frames with PyAV: the backend that reads every file, and the reference for the other.

The decision: decode forward from the start and convert only the wanted frames. Seeking is left out: it costs more than
it saves on clips, and after a seek, open groups of pictures lose frames. Conversion runs on one thread, because
handing a small frame to FFmpeg's thread pool costs several times the conversion. PyAV does not turn frames as the
file's display matrix asks, nor does it make pixels square; that happens here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from multicoca.reading import UnreadableFileError, require
from multicoca_video.display import display_of
from multicoca_video.scan import Scan, opened, timed_frames

T = TypeVar("T")


def read_with_pyav(source: Path | bytes, scan: Scan, wanted: np.ndarray, prepare: Callable[[np.ndarray], T]) -> list[T]:
    """Reads frames of a file; no more than one of them is held at its full size.

    In a clean file frames are found by their time: one that turns out to be undecodable is then replaced by what a
    player shows at that time, the frame before it. In an unusual file the scan has decoded them, so they are counted.

    Args:
        source: the file or its content.
        scan: what `scan_video` says about it.
        wanted: [wanted] indices into the scan's frames, ascending, without repeats, at least one.
        prepare: what is done to each picture, uint8 [height, width, 3], RGB, upright.

    Returns:
        What `prepare` gave for each wanted frame.

    Raises:
        UnreadableFileError: nothing could be decoded.
    """
    middles = np.append((scan.times_s[:-1] + scan.times_s[1:]) / 2, np.inf)
    until = wanted + 0.5 if scan.unusual else middles[wanted]
    pictures: list[T] = []
    errors: list[str] = []
    shown = None
    painter = None
    with opened(source, scan.max_pixels) as (container, stream):
        for number, (time, frame) in enumerate(timed_frames(container, stream, scan.start_pts, errors)):
            painter = painter or _Painter(scan.display.pixel_aspect, frame)
            place = number if scan.unusual else time
            while shown is not None and len(pictures) < len(until) and place > until[len(pictures)]:
                pictures.append(prepare(painter.paint(shown)))
            if len(pictures) == len(until):
                break
            shown = frame
        if shown is None or painter is None:
            raise UnreadableFileError(f"no frame could be decoded: {errors[0] if errors else 'the stream is empty'}")
        while len(pictures) < len(until):
            pictures.append(prepare(painter.paint(shown)))
    return pictures


class _Painter:
    """Turns decoded frames into upright RGB of one size, that of the stream's first (it may change midway)."""

    def __init__(self, pixel_aspect: float, first: Any) -> None:
        self._reformatter = require("av.video.reformatter", "video").VideoReformatter()
        self._pixel_aspect = pixel_aspect
        self._size = display_of(first, pixel_aspect).square_size(first.width, first.height)

    def paint(self, frame: Any) -> np.ndarray:
        display = display_of(frame, self._pixel_aspect)
        width, height = self._size
        picture = self._reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
        return display.upright(picture)
