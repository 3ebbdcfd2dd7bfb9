"""Reads frames with decord, from files and in a way in which it is known to be right.

decord 0.6 is quick on short clips, but: on files with an edit list it hangs for ever in native code, where no signal
reaches it; on damaged files it may crash the process; after a seek in an open group of pictures (the default of x265)
it returns other frames than asked for, and in MPEG-TS and AVI files it does so always. The decision: it only gets
clean MP4 and Matroska files, and reads them forward from the first frame without a gap, so that it never seeks or
skips. Skipping is the call that hangs. (Known: github.com/dmlc/decord issues 269, 373 and 375.)
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from multicoca.modality import require
from multicoca_video.scan import Scan

_CONTAINERS = ("mov,mp4", "matroska")  # how FFmpeg's names of the formats begin
_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4")
_BUDGET_BYTES = 64 * 2**20  # of decoded frames; PyAV, which converts only the wanted ones, is quicker beyond


class DecordUnfitError(Exception):
    """decord cannot or must not read this file; the message is the reason. PyAV reads it then."""


def reason_against_decord(scan: Scan) -> str:
    """Says why decord must not read a file; empty when it may."""
    if scan.unusual:
        return scan.unusual
    if not scan.container.startswith(_CONTAINERS):
        return f"decord misreads files of the kind '{scan.container}'"
    if scan.codec not in _CODECS:
        return f"decord does not read the codec '{scan.codec}'"
    if len(scan.times_s) * scan.frame_bytes > _BUDGET_BYTES:
        return "the clip is long, and PyAV is quicker on long clips"
    return ""


def read_with_decord(source: Path | bytes, scan: Scan, wanted: np.ndarray) -> np.ndarray:
    """Reads frames of a file for which `reason_against_decord` is empty.

    Args:
        source: the file or its content.
        scan: what `scan_video` says about it.
        wanted: [wanted] indices into the scan's frames, ascending, without repeats, at least one.

    Returns:
        uint8 array [wanted, height, width, 3], RGB, upright.

    Raises:
        DecordUnfitError: decord is missing, failed, or disagrees with the scan.
    """
    try:
        decord = require("decord", "video")
    except ImportError as error:
        raise DecordUnfitError("decord is not installed") from error
    decord.logging.set_level(decord.logging.QUIET)  # its errors arrive as exceptions
    try:
        # one thread: data workers share the cores
        reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
        if len(reader) != len(scan.times_s):
            raise DecordUnfitError(f"decord sees {len(reader)} frames where {len(scan.times_s)} are shown")
        if reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].min() < 0:
            raise DecordUnfitError("decord sees frames from before the start")
        return reader.get_batch(np.arange(wanted[-1] + 1)).asnumpy()[wanted]
    except (decord.DECORDError, RuntimeError, ValueError, IndexError) as error:
        # ValueError: its error messages may hold bytes of the file, which are then no valid text
        raise DecordUnfitError(f"decord failed ({str(error).splitlines()[0].rpartition('] ')[2][:200]})") from error
