"""What is inside a video file: which frames it shows and when, found without trusting its header.

The decision: every file is first walked packet by packet (well under a millisecond for a short clip). Headers lie about
frame counts, edit lists hide frames, files end early; packets tell. A file with anything unusual is decoded once
from start to end, so that the list of frames is what a player would show. Reading happens in `frames_pyav` and
`frames_decord`; both rely on this list.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multicoca.reading import UnreadableFileError, require
from multicoca_video.display import Display, display_of, may_be_turned

# Only containers. Without this list FFmpeg would also play playlists, which name other files and addresses.
MAX_PIXELS = 8192 * 4320  # of a frame; the largest size that is broadcast
_PROGRESSIVE = 1  # FFmpeg's AVFieldOrder; 0 is unknown, all above are interlaced
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,gif,flv,ogg,asf"


@dataclass(frozen=True)
class Scan:
    """The frames of a file as a player shows them.

    Attributes:
        times_s: float64 [frames], presentation times, never decreasing, the first is 0.
        duration_s: the end of the last frame.
        start_pts: the presentation timestamp that counts as 0, in units of the stream.
        container: FFmpeg's name of the file format, e.g. "matroska,webm".
        codec: FFmpeg's name of the coding, e.g. "h264".
        pixel_format: FFmpeg's name of what is stored of each pixel, e.g. "yuv420p".
        is_interlaced: whether the lines of a frame are of two moments.
        frame_bytes: size of one decoded RGB frame.
        display: how stored frames become what a player shows.
        num_streams: video streams of the file, cover pictures left out.
        max_pixels: of a frame; larger ones are not decoded.
        unusual: what is odd about the file, empty when nothing is.
    """

    times_s: np.ndarray
    duration_s: float
    start_pts: int
    container: str
    codec: str
    pixel_format: str
    is_interlaced: bool
    frame_bytes: int
    display: Display
    num_streams: int
    max_pixels: int
    unusual: str


def scan_video(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Scan:
    """Lists the frames of a video file.

    Raises:
        UnreadableFileError: the file is missing, empty, not a video, has larger frames than `max_pixels`, or nothing in
            it can be decoded.
        ImportError: PyAV is not installed.
    """
    with opened(source, max_pixels) as (container, stream):
        packets, unusual = _packets(container, stream)
        if not packets:
            raise UnreadableFileError(f"{_name(source)} holds a video stream without any frame; it is cut off or empty")
        scan_with = _of_the_stream(source, container, stream, max_pixels)
        unusual = unusual or _oddity(packets)
        if not unusual:
            return scan_with(*_times_of_packets(packets, stream), unusual="")
    return scan_with(*_times_of_frames(source, max_pixels, unusual), unusual=unusual)


def _of_the_stream(source: Path | bytes, container: Any, stream: Any, max_pixels: int) -> Callable[..., Scan]:
    """Returns `Scan` with what the file says about its stream as a whole; times and `unusual` are missing."""
    codec = stream.codec_context
    display = Display(float(stream.sample_aspect_ratio or 1) or 1.0)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        is_turned = may_be_turned(file, container.format.name)
    if is_turned:
        with opened(source, max_pixels) as again:
            frame = next((frame for _, frame in timed_frames(*again, None, [])), None)
        display = display if frame is None else display_of(frame, display.pixel_aspect)
    width, height = display.size(codec.width, codec.height)
    if max(width * height, codec.width * codec.height) > max_pixels:
        raise UnreadableFileError(
            f"its frames have {codec.width} x {codec.height} px, shown as {width} x {height}; at most {max_pixels} are "
            "decoded. Raise the processor's max_pixels if the file is to be trusted"
        )
    return partial(
        Scan,
        container=container.format.name,
        codec=codec.name,
        pixel_format=codec.pix_fmt or "",
        is_interlaced=codec.field_order > _PROGRESSIVE,
        frame_bytes=3 * width * height,
        display=display,
        num_streams=len(video_streams(container)),
        max_pixels=max_pixels,
    )


def _packets(container: Any, stream: Any) -> tuple[list[Any], str]:
    """Returns all packets that carry data, and why the walk ended early, if it did."""
    av = require("av", "video")
    packets = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
    except av.FFmpegError as error:
        return packets, f"the file breaks off ({error})"
    return packets, ""


def _oddity(packets: list[Any]) -> str:
    """Says why the packets may not be what is shown, one by one; empty when they are."""
    if any(packet.is_discard for packet in packets):
        return "an edit list hides some of its frames"
    if any(packet.is_corrupt for packet in packets):
        return "some of its data is damaged or cut off"
    if any(packet.pts is None for packet in packets):
        return "some frames have no time"
    times = {packet.pts for packet in packets}
    if len(times) != len(packets):
        return "several frames have the same time"
    if not packets[0].is_keyframe or packets[0].pts != min(times):
        return "it does not start with a key frame"
    return ""


def _times_of_packets(packets: list[Any], stream: Any) -> tuple[np.ndarray, float, int]:
    """Returns (times of the frames, the end of the last one, the timestamp of the first)."""
    packets = sorted(packets, key=lambda packet: packet.pts)
    start = packets[0].pts
    times = np.array([seconds(packet.pts - start, stream.time_base) for packet in packets])
    last = seconds(packets[-1].duration or 0, stream.time_base)
    return times, _duration(times, last, stream.average_rate), start


def _times_of_frames(source: Path | bytes, max_pixels: int, unusual: str) -> tuple[np.ndarray, float, int]:
    """Does the same by decoding everything once, without keeping or converting a frame."""
    times, last, errors = [], 0.0, []
    start = None
    with opened(source, max_pixels) as (container, stream):
        for time, frame in timed_frames(container, stream, None, errors):
            if start is None:
                start = frame.pts or 0
            times.append(time)
            last = seconds(frame.duration or 0, stream.time_base)
        rate = stream.average_rate
    if start is None:
        reason = f": {errors[0]}" if errors else ""
        raise UnreadableFileError(f"no frame of {_name(source)} can be decoded; {unusual}{reason}")
    seen = np.array(times)
    if (np.diff(seen) <= 0).any():  # AVI with B-frames, for one, stores no usable times: spread the frames evenly
        seen = np.linspace(0, seen[-1] or (len(seen) - 1) / float(rate or 25), len(seen))
    return seen, _duration(seen, last, rate), start


def _duration(times: np.ndarray, last: float, rate: Fraction | None) -> float:
    """Returns the end of the last frame; a missing frame duration is replaced by the usual distance of frames."""
    if last <= 0 and len(times) > 1:
        last = float(np.median(np.diff(times)))
    if last <= 0 and rate:
        last = float(1 / rate)
    return float(times[-1]) + last


def seconds(ticks: int, time_base: Fraction) -> float:
    """Converts a stream's ticks to seconds."""
    return ticks * time_base.numerator / time_base.denominator


def timed_frames(container: Any, stream: Any, start_pts: int | None, errors: list[str]) -> Iterator[tuple[float, Any]]:
    """Decodes a stream from its start and passes over what cannot be decoded, as players do.

    Args:
        container: an open PyAV container.
        stream: its video stream.
        start_pts: the timestamp that counts as 0; None for that of the first frame.
        errors: takes the reasons of what could not be decoded.

    Yields:
        (time in seconds, PyAV frame), in the order in which they are shown; times never decrease.
    """
    av = require("av", "video")
    gap = float(1 / stream.average_rate) if stream.average_rate else 0.0
    time = None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            errors.append(str(error))
            packet = None
        for frame in _decoded(stream, packet, errors):
            if start_pts is None:
                start_pts = frame.pts or 0
            if frame.pts is not None:
                stamp = seconds(frame.pts - start_pts, stream.time_base)
            else:
                stamp = 0.0 if time is None else time + gap
            time = stamp if time is None else max(time, stamp)
            yield time, frame
        if packet is None:
            return


def _decoded(stream: Any, packet: Any | None, errors: list[str]) -> list[Any]:
    """Returns the frames that are complete after this packet; None takes out what the decoder still holds."""
    av = require("av", "video")
    try:
        return stream.decode(packet)
    except av.EOFError:  # already taken out
        return []
    except av.FFmpegError as error:
        errors.append(str(error))
        return []


@contextmanager
def opened(source: Path | bytes, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Opens a file and gives (PyAV container, its video stream), decoding on one thread.

    Of several video streams it is the one that FFmpeg takes for the best (av_find_best_stream): one that is marked as
    the default first, then the one with the most frames and the highest bit rate. Frames with more pixels than
    `max_pixels` are not decoded, whatever size the file's header gives.

    Raises:
        UnreadableFileError: the file is missing, empty or not a video; the message is the reason.
        ImportError: PyAV is not installed.
    """
    av = require("av", "video")
    _refuse_what_is_no_video(source)
    try:
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else str(source),
            options={"format_whitelist": _CONTAINERS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError) as error:
        raise UnreadableFileError(f"{_name(source)} is not a video that FFmpeg can open: {error}") from error
    with container:
        streams = video_streams(container)
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise UnreadableFileError(f"{_name(source)} holds no video stream, only {kinds}")
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise UnreadableFileError(f"{_name(source)} is coded in a way that FFmpeg does not know")
        stream.thread_type = "SLICE"  # frame threads would delay every frame, and data workers share the cores
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def video_streams(container: Any) -> list[Any]:
    """Returns the video streams of a PyAV container, cover pictures left out."""
    pictures = require("av", "video").stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def _refuse_what_is_no_video(source: Path | bytes) -> None:
    """Gives the plain reasons that FFmpeg has no words for."""
    if isinstance(source, bytes):
        head = source[:512]
    else:
        try:
            with source.open("rb") as file:
                head = file.read(512)
        except OSError as error:
            raise UnreadableFileError(f"{_name(source)} cannot be read: {error.strerror}") from error
    if not head:
        raise UnreadableFileError(f"{_name(source)} is empty (0 bytes)")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UnreadableFileError(f"{_name(source)} is an HTML page, not a video; the download probably failed")


def _name(source: Path | bytes) -> str:
    return f"the data ({len(source)} bytes)" if isinstance(source, bytes) else f"'{source}'"
