"""Reads frames with decord, from files and in a way in which it is known to be right.

decord 0.6 is quick on short clips, but: on files with an edit list it hangs for ever in native code, where no signal
reaches it; on damaged files it may crash the process; after a seek in an open group of pictures (the default of x265)
it returns other frames than asked for, and in MPEG-TS and AVI files it does so always. The decision: it only gets
clean MP4 and Matroska files, and reads them forward from the first frame without a gap, so that it never seeks or
skips. Skipping is the call that hangs. (Known: github.com/dmlc/decord issues 269, 373 and 375.) Sample tables that lie
abort the process in a way that no look at the file foretells, so decord runs in a process that can be lost.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from multicoca.isolated import run_isolated
from multicoca.reading import UnreadableFileError, require
from multicoca_video.display import Display
from multicoca_video.scan import Scan

_CONTAINERS = ("mov,mp4", "matroska")  # how FFmpeg's names of the formats begin
_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4")
_PIXEL_FORMATS = ("yuv420p", "yuvj420p")  # of others, e.g. with 10 bits, it spreads the colours in another way
_BUDGET_BYTES = 64 * 2**20  # of decoded frames; PyAV, which converts only the wanted ones, is quicker beyond


class DecordUnfitError(Exception):
    """decord cannot or must not read this file; the message is the reason. PyAV reads it then."""


def reason_against_decord(scan: Scan) -> str:
    """Says why decord must not read a file; empty when it may."""
    if scan.unusual:
        return scan.unusual
    if not scan.container.startswith(_CONTAINERS):
        return f"decord misreads files of the kind '{scan.container}'"
    if scan.num_streams > 1:
        return "decord chooses among several video streams by another rule"
    if scan.display.is_mirrored or scan.display.pixel_aspect != 1:
        return "decord neither mirrors frames nor makes pixels square"
    if scan.display != Display() and scan.container.startswith("matroska"):
        return "decord does not turn the frames of Matroska files"
    if scan.codec not in _CODECS:
        return f"decord does not read the codec '{scan.codec}'"
    if scan.pixel_format not in _PIXEL_FORMATS:
        return f"decord and PyAV convert '{scan.pixel_format}' to RGB differently"
    if scan.is_interlaced:
        return "decord mixes the colours of the two fields of interlaced frames"
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
        DecordUnfitError: decord is missing, failed, was not done in time, or disagrees with the scan.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size  # frames are few: see _BUDGET_BYTES
    file = source if isinstance(source, bytes) else str(source)
    try:
        return run_isolated("multicoca_video.frames_decord:decode", file, len(scan.times_s), wanted, file_bytes=size)
    except ImportError as error:
        raise DecordUnfitError("decord is not installed") from error
    except UnreadableFileError as error:
        raise DecordUnfitError(str(error)) from error


def decode(file: str | bytes, num_frames: int, wanted: np.ndarray) -> np.ndarray:
    """Does what `read_with_decord` says, in the process that can be lost.

    Raises:
        UnreadableFileError: decord failed, or sees another number of frames.
        ImportError: decord is not installed.
    """
    decord = require("decord", "video")
    decord.logging.set_level(decord.logging.QUIET)  # its errors arrive as exceptions
    try:
        # one thread: data workers share the cores
        reader = decord.VideoReader(io.BytesIO(file) if isinstance(file, bytes) else file, num_threads=1)
        if len(reader) != num_frames:
            raise UnreadableFileError(f"decord sees {len(reader)} frames where {num_frames} are shown")
        if reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].min() < 0:
            raise UnreadableFileError("decord sees frames from before the start")
        return reader.get_batch(np.arange(wanted[-1] + 1)).asnumpy()[wanted]
    except decord.DECORDError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2][:200]
        raise UnreadableFileError(f"decord failed ({reason})") from error
