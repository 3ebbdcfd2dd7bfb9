"""Frames are shown as players show them: turned, mirrored, with square pixels, of a stream chosen by a stated rule."""

from __future__ import annotations

import gc
import io
import shutil
import struct
import subprocess
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from multicoca_video import VideoProcessor, open_video
from multicoca_video.display import Display, may_be_turned
from multicoca_video.frames_decord import DecordUnfitError, read_with_decord
from multicoca_video.scan import scan_video

from multicoca.isolated import run_isolated
from multicoca.reading import UnreadableFileError

av = pytest.importorskip("av")
pytest.importorskip("decord")

CASES = Path(__file__).parent.parent / "cases"
BOTH, ONLY_PYAV = ("decord", "pyav"), ("pyav",)
ONE = 1 << 16
MATRICES = {  # (a, b, c, d) of every way to place a picture on the axes
    "as stored": (1, 0, 0, 1), "90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0),
    "left and right": (-1, 0, 0, 1), "top and bottom": (1, 0, 0, -1), "transposed": (0, 1, 1, 0),
    "other diagonal": (0, -1, -1, 0),
}  # fmt: skip


def corners(height: int = 48, width: int = 80) -> np.ndarray:
    """Four corners that cannot be confused: red, green / blue, black."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, : width // 2, 2] = 255
    return picture


def clip(picture: np.ndarray, matrix: tuple[int, int, int, int] = (1, 0, 0, 1), suffix: str = "mp4", **stream_options):
    file = io.BytesIO()
    with av.open(file, "w", format={"mp4": "mp4", "mkv": "matroska"}[suffix]) as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "10"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(file.getvalue())
    if suffix == "mp4":
        place = data.find(b"tkhd") + 44  # ISO 14496-12, 8.3.2: the matrix of a version 0 header
        a, b, c, d = (value * ONE for value in matrix)
        data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


def placed(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Puts every pixel where ISO 14496-12 says: x' = a x + c y, y' = b x + d y, then moved into the picture."""
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    shown = np.empty((height, width, 3) if b == 0 else (width, height, 3), picture.dtype)
    shown[to_y - to_y.min(), to_x - to_x.min()] = picture
    return shown


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_the_whole_display_matrix_is_applied_by_both_backends(matrix, backends):
    shown = open_video(clip(corners(), matrix), backends).frames([2])[0]
    np.testing.assert_allclose(shown.astype(int), placed(corners(), matrix), atol=40)  # of compression, at the borders
    upright = open_video(clip(corners()), ONLY_PYAV).frames([2])[0]
    np.testing.assert_array_equal(shown, placed(upright, matrix))


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_the_projection_of_a_matroska_file_is_applied_by_both_backends(matrix, backends):
    file = io.BytesIO()
    with av.open(io.BytesIO(clip(corners(), matrix))) as given, av.open(file, "w", format="matroska") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    shown = open_video(file.getvalue(), backends).frames([2])[0]
    np.testing.assert_allclose(shown.astype(int), placed(corners(), matrix), atol=40)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("name", ["mirror.mp4", "rot90_mirror.mp4"])
@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_a_mirrored_clip_is_shown_as_ffmpeg_shows_it(name, backends):
    command = ["ffmpeg", "-v", "error", "-i", str(CASES / name), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3)
    video = open_video(CASES / name, backends)
    assert video.num_frames == len(frames)
    np.testing.assert_allclose(video.frames([0, 7])[[0, 1]].astype(int), frames[[0, 7]], atol=6)  # other colour tables
    assert not np.allclose(frames[7], frames[7][:, ::-1], atol=30)  # it can be told from its mirror image


@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_pixels_become_square(backends):
    video = open_video(CASES / "sar_64_45.mp4", backends)
    frame = video.frames([0])[0].astype(int)
    assert frame.shape == (64, 128, 3)  # 90 x 64:45
    is_disc = np.abs(frame - frame[0, 0]).sum(axis=2) > 150
    height, width = (int(is_disc.any(axis=axis).sum()) for axis in (1, 0))
    assert abs(height - width) <= 2


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2, 1), (48, 160)), (Fraction(1, 2), (96, 80))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_side_grows_and_none_shrinks(aspect, size, suffix):
    data = clip(corners(), suffix=suffix, sample_aspect_ratio=aspect)
    for backends in (BOTH, ONLY_PYAV):
        assert open_video(data, backends).frames([0]).shape[1:3] == size


def test_pixels_that_are_not_square_may_be_turned_too():
    data = clip(corners(), MATRICES["90"], sample_aspect_ratio=Fraction(2, 1))
    shown = open_video(data).frames([1])[0].astype(int)
    assert shown.shape == (160, 48, 3)
    np.testing.assert_allclose(shown[4, -4], [255, 0, 0], atol=40)  # the upper left has come to the upper right


@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_of_several_streams_both_backends_read_the_one_that_ffmpeg_takes_for_the_best(backends):
    with av.open(str(CASES / "two_streams.mp4")) as container:
        best = container.streams.best("video")
        expected = next(container.decode(best)).to_ndarray(format="rgb24")
    video = open_video(CASES / "two_streams.mp4", backends)
    np.testing.assert_array_equal(video.frames([0])[0], expected)
    assert video.backend == "pyav"


def test_frames_that_are_askew_are_refused():
    data = bytearray(clip(corners()))
    place = data.find(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)  # 45 degrees
    with pytest.raises(UnreadableFileError, match="no multiple of 90 degrees"):
        open_video(bytes(data))


def test_a_file_whose_frames_are_too_large_is_refused_by_its_header():
    with pytest.raises(UnreadableFileError, match="80 x 48 px.*max_pixels"):
        VideoProcessor(max_pixels=80 * 47).decode(clip(corners()))
    with pytest.raises(UnreadableFileError, match="shown as 160 x 48"):
        VideoProcessor(max_pixels=80 * 50).decode(clip(corners(), sample_aspect_ratio=Fraction(2, 1)))


def test_only_files_with_a_matrix_are_decoded_to_find_it():
    for name, matrix in MATRICES.items():
        with io.BytesIO(clip(corners(), matrix)) as file:
            assert may_be_turned(file, "mov,mp4,m4a,3gp,3g2,mj2") == (name != "as stored")
    with io.BytesIO(clip(corners(), suffix="mkv")) as file:
        assert not may_be_turned(file, "matroska,webm")


def test_displays_without_a_change_leave_pictures_as_they_are():
    np.testing.assert_array_equal(Display().upright(corners()), corners())
    assert Display().size(80, 48) == (80, 48)


def test_a_sample_table_that_aborts_decord_costs_one_file_at_the_most():
    """decord aborts its process on this file; whatever is then read is what PyAV reads."""
    file = CASES / "hostile" / "stts.mp4"
    results = []
    for backends in (BOTH, ONLY_PYAV):
        try:
            results.append(open_video(file, backends).frames([0]).tobytes())
        except UnreadableFileError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_decord_reads_in_a_process_that_can_be_lost(monkeypatch):
    data = clip(corners())
    scan = scan_video(data)
    calls = []

    def aborting(target, *_, **limits):
        calls.append(target)
        return run_isolated("os:abort", **limits)

    monkeypatch.setattr("multicoca_video.frames_decord.run_isolated", aborting)
    with pytest.raises(DecordUnfitError, match="ended the process"):
        read_with_decord(data, scan, np.array([0]))
    assert calls == ["multicoca_video.frames_decord:decode"]
    video = open_video(data, BOTH)  # PyAV takes over
    np.testing.assert_array_equal(video.frames([1]), open_video(data, ONLY_PYAV).frames([1]))
    assert video.backend == "pyav"


def encoded(frames: list[np.ndarray], pixel_format: str = "yuv420p", **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "10", **options})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("pixel_format", "options", "reason"),
    [("yuv420p10le", {}, "yuv420p10le"), ("yuv420p", {"x264-params": "interlaced=1"}, "interlaced")],
)
def test_what_decord_would_convert_differently_is_read_by_pyav(pixel_format, options, reason):
    data = encoded([corners()] * 3, pixel_format, **options)
    video = open_video(data, BOTH)
    assert reason in video.backend_reason
    np.testing.assert_array_equal(video.frames([1]), open_video(data, ONLY_PYAV).frames([1]))


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path):
    parts = []
    for height, width in ((48, 80), (96, 160)):
        file = io.BytesIO()
        with av.open(file, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=10, options={"qmin": "1", "qmax": "2"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(height, width), format="rgb24")))
            container.mux(stream.encode())
        parts.append(file.getvalue())
    video = open_video(b"".join(parts))
    last = video.frames([video.num_frames - 1])
    assert last.shape[1:3] == (48, 80)
    np.testing.assert_array_equal(last[0], video.frames([0, video.num_frames - 1])[1])


def test_frames_larger_than_the_header_says_are_not_decoded():
    """Its key frame has 12589 x 12288 px where the header has 48 x 48."""
    data = (CASES / "hostile" / "frame_of_154_megapixels.webm").read_bytes()
    with pytest.raises(UnreadableFileError, match="no frame could be decoded"):
        open_video(data, ONLY_PYAV).frames([0])


def test_no_more_than_a_frame_is_held_at_its_full_size():
    video = open_video(clip(corners(480, 800)), ONLY_PYAV)
    alive: list[weakref.ref] = []

    def prepare(picture: np.ndarray) -> int:
        alive.append(weakref.ref(picture.base if picture.base is not None else picture))
        gc.collect()
        assert sum(own() is not None for own in alive) == 1
        return len(alive)

    assert video.prepared([4, 0, 2, 0], prepare) == [3, 1, 2, 1]
