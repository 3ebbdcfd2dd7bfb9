"""Reading: every frame carries its number as black and white blocks, so that it can be told after compression."""

import io
import os
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from multicoca_video import open_video
from patience import DEADLINE_S
from PIL import Image

from multicoca.modality import UnreadableFileError

av = pytest.importorskip("av")
pytest.importorskip("decord")

BOTH, ONLY_PYAV = ("decord", "pyav"), ("pyav",)
WIDTH, HEIGHT = 96, 64


def numbered(number, width=WIDTH, height=HEIGHT):
    """A picture with a number in binary, 9 blocks in a row, below a white band; the rest is grey."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[:8] = 255
    block = width // 9
    for bit in range(9):
        picture[16:40, bit * block : (bit + 1) * block] = 255 * (number >> bit & 1)
    return picture


def number_of(picture):
    block = picture.shape[1] // 9
    centers = [picture[28, bit * block + block // 2].mean() for bit in range(9)]
    return sum(int(value > 127) << bit for bit, value in enumerate(centers))


def write(path, numbers, codec="libx264", times_ms=None, options=None, bframes=True):
    """Writes numbered frames at 25 per second, or at the given times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = (times_ms[place] if times_ms else 40 * place), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turned(path, clockwise):
    """Writes a rotation into the display matrix of an MP4 file."""
    data = bytearray(path.read_bytes())
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, -b * one, a * one, 0, 0, 0, 1 << 30)
    place = data.find(b"tkhd") + 44  # ISO 14496-12, 8.3.2: the matrix of a version 0 header
    data[place : place + 36] = matrix
    return bytes(data)


def cut_without_recoding(source, target, first_visible, last):
    """Copies packets up to a frame and lets the file start in the middle, as `ffmpeg -ss .. -c copy` does."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        shift = round(first_visible * 0.04 / stream.time_base)
        for packet in reader.demux(stream):
            if packet.size and packet.pts <= round(last * 0.04 / stream.time_base):
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                writer.mux(packet)
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", range(60), options={"g": "25", "bf": "2"})


@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_each_index_gives_its_own_frame_in_any_order_and_with_repeats(clip, backends):
    video = open_video(clip, backends)
    asked = [59, 0, 31, 31, 24, 25, 26, 1]
    frames = video.frames(asked)
    assert frames.shape == (8, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert [number_of(frame) for frame in frames] == asked
    assert video.backend == backends[0]
    np.testing.assert_allclose(video.frame_times_s, np.arange(60) * 0.04, atol=1e-9)
    assert video.duration_s == pytest.approx(2.4)


def test_backends_agree_to_the_bit_and_so_do_path_and_bytes(clip):
    asked = [0, 7, 30, 59]
    wanted = open_video(clip, BOTH).frames(asked)
    for file in (clip, clip.read_bytes()):
        for backends in (BOTH, ONLY_PYAV):
            np.testing.assert_array_equal(open_video(file, backends).frames(asked), wanted)


def test_open_groups_of_pictures_are_read_exactly(tmp_path):
    options = {"g": "20", "bf": "3", "sc_threshold": "0", "x264-params": "open-gop=1"}
    file = write(tmp_path / "open.mp4", range(80), options=options)
    asked = [19, 21, 39, 41, 58, 61]
    for backends in (BOTH, ONLY_PYAV):
        assert [number_of(frame) for frame in open_video(file, backends).frames(asked)] == asked


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts", ".mov"])
def test_other_containers_are_read_exactly(tmp_path, suffix):
    file = write(tmp_path / f"clip{suffix}", range(30))
    video = open_video(file)
    assert [number_of(frame) for frame in video.frames(range(30))] == list(range(30))
    np.testing.assert_allclose(video.frame_times_s, np.arange(30) * 0.04, atol=0.041 if suffix == ".avi" else 2e-3)
    assert video.backend == ("decord" if suffix in (".mkv", ".mov") else "pyav")


def test_webm_vp9_is_read_exactly(tmp_path):
    file = write(
        tmp_path / "clip.webm", range(12), codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}
    )
    assert [number_of(frame) for frame in open_video(file).frames(range(12))] == list(range(12))


@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_variable_frame_rate_keeps_the_real_times(tmp_path, backends):
    times = [0, 40, 80, 1000, 1040, 3000]
    file = write(tmp_path / "vfr.mp4", range(6), times_ms=times)
    video = open_video(file, backends)
    np.testing.assert_allclose(video.frame_times_s, np.array(times) / 1000, atol=1e-6)
    assert [number_of(frame) for frame in video.frames(range(6))] == list(range(6))


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_is_applied_alike_by_both_backends(clip, clockwise):
    data = turned(clip, clockwise)
    upright = open_video(clip).frames([5])[0]
    for backends in (BOTH, ONLY_PYAV):
        video = open_video(data, backends)
        np.testing.assert_array_equal(video.frames([5])[0], np.rot90(upright, -clockwise // 90))
        assert video.backend == backends[0]


def test_av1_is_read_by_pyav(tmp_path):
    file = write(tmp_path / "av1.mp4", range(10), codec="libsvtav1", options={"preset": "12", "crf": "30"})
    if sys.platform == "linux":  # of the superuser's process SVT-AV1 makes a real-time one, and all its children are
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    video = open_video(file)
    assert [number_of(frame) for frame in video.frames([0, 4, 9])] == [0, 4, 9]
    assert (video.backend, "av1" in video.backend_reason) == ("pyav", True)


@pytest.mark.parametrize("backends", [BOTH, ONLY_PYAV])
def test_one_frame(tmp_path, backends):
    video = open_video(write(tmp_path / "one.mp4", [37]), backends)
    assert video.num_frames == 1
    assert [number_of(frame) for frame in video.frames([0, 0])] == [37, 37]
    assert video.duration_s > 0


def test_edit_list_hides_frames_and_keeps_decord_away(tmp_path):
    whole = write(tmp_path / "whole.mp4", range(257), options={"g": "300", "sc_threshold": "0", "bf": "2"})
    cut = cut_without_recoding(whole, tmp_path / "cut.mp4", 210, 256)
    assert _numbers_in_subprocess(cut) == ["pyav", *map(str, range(210, 257))]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")
def test_file_on_which_decord_hangs_is_read(tmp_path):
    quiet = ["ffmpeg", "-y", "-v", "error"]
    whole, cut = str(tmp_path / "whole.mp4"), tmp_path / "cut.mp4"
    make = "-f lavfi -i testsrc2=size=320x240:rate=30:duration=10 -c:v libx264 -preset veryfast -g 250 -sc_threshold 0"
    subprocess.run([*quiet, *make.split(), "-pix_fmt", "yuv420p", whole], check=True, timeout=DEADLINE_S)
    subprocess.run(
        [*quiet, "-ss", "7", "-i", whole, "-t", "1.5", "-c", "copy", str(cut)], check=True, timeout=DEADLINE_S
    )
    assert len(_numbers_in_subprocess(cut)) == 1 + 47
    shown = open_video(cut, BOTH).frames(range(47))
    expected = open_video(Path(whole), ONLY_PYAV).frames(range(210, 257))
    np.testing.assert_array_equal(shown, expected)


def _numbers_in_subprocess(file):
    """Reads all frames where a hang can be ended: returns the backend, then the number of each frame."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[i]) for i in (0, 1)]!r}\n"
        "from test_video_reader import number_of, open_video\n"
        f"video = open_video(open({str(file)!r}, 'rb').read())\n"
        "frames = video.frames(range(video.num_frames))\n"
        "print(video.backend, *map(number_of, frames))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return done.stdout.split()


def test_file_cut_in_half_gives_the_frames_it_still_has(tmp_path):
    file = write(tmp_path / "whole.mp4", range(60), options={"g": "10", "bf": "0"})
    with (
        av.open(str(file)) as reader,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
    ):
        copy = out.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    video = open_video(data[: data.find(b"mdat") + (len(data) - data.find(b"mdat")) // 2])
    assert 15 < video.num_frames < 45
    numbers = [number_of(frame) for frame in video.frames(range(video.num_frames))]
    assert numbers[:-1] == list(range(video.num_frames - 1))  # the last one may be torn
    assert video.backend == "pyav"


def test_damage_in_the_middle_does_not_move_the_frames_after_it(tmp_path):
    file = write(tmp_path / "clip.mp4", range(60), options={"g": "10", "bf": "0", "sc_threshold": "0"})
    with av.open(str(file)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    for position, size in packets[25:28]:
        data[position : position + size] = bytes(size)
    for backends in (BOTH, ONLY_PYAV):
        video = open_video(bytes(data), backends)
        assert [number_of(frame) for frame in video.frames([0, 24, 26, 30, 59])] == [0, 24, 24, 30, 59]
        assert video.backend == "pyav"


def _audio_only():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _picture():
    """What FFmpeg would also open, like playlists, if it were not told which formats are wanted."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "HTML"),
        (b"no video at all " * 200, "not a video"),
        (_audio_only, "only audio"),
        (_picture, "not a video"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(tmp_path, content, reason):
    data = content if isinstance(content, bytes) else content()
    (tmp_path / "clip.mp4").write_bytes(data)
    for file in (data, tmp_path / "clip.mp4"):
        with pytest.raises(UnreadableFileError, match=reason):
            open_video(file)


def test_missing_file_and_headless_rest_are_refused(tmp_path, clip):
    with pytest.raises(UnreadableFileError, match="No such file"):
        open_video(tmp_path / "none.mp4")
    data = clip.read_bytes()
    with pytest.raises(UnreadableFileError):
        open_video(data[: data.rfind(b"moov") - 4])  # the index stands at the end and is lost
    with pytest.raises(UnreadableFileError):
        open_video(data[:100])


def test_indices_outside_and_unknown_backends_are_refused(clip):
    for indices in ([60], [-1], []):
        with pytest.raises(IndexError, match="60 frames"):
            open_video(clip).frames(indices)
    with pytest.raises(ValueError, match="backends"):
        open_video(clip, ("decord",))


def test_importing_the_package_imports_no_optional_package():
    code = (
        "import sys, multicoca_video; print([n for n in ('av', 'decord', 'pytorchvideo', 'timm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert done.stdout.strip() == "[]"


def test_clips_are_read_where_decord_is_not_installed(tmp_path):
    numbers = list(range(20))
    write(tmp_path / "clip.mp4", numbers)
    assert open_video(tmp_path / "clip.mp4").backend == "decord"
    (tmp_path / "decord.py").write_text("raise ModuleNotFoundError('No module named decord', name='decord')")
    code = (
        "import sys; from pathlib import Path; from multicoca_video import open_video; import numpy\n"
        "video = open_video(Path(sys.argv[1])); numpy.save(sys.argv[2], video.frames(range(video.num_frames)))\n"
        "print(video.backend, video.backend_reason)"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "clip.mp4", tmp_path / "frames.npy"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.stdout.strip() == "pyav decord is not installed", done.stderr
    assert [number_of(frame) for frame in np.load(tmp_path / "frames.npy")] == numbers
