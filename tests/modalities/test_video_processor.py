import io
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from multicoca_video import ClipSampler, UniformSampler, VideoProcessor, open_video
from multicoca_video.processor import random_crop
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from multicoca.data.shapes import Scene, SceneObject
from multicoca.data.shapes.geometry import front_view
from multicoca.modality import Processor, SceneRenderer, TensorBoardViewer, UnreadableFileError

av = pytest.importorskip("av")

MOVING = Scene((SceneObject("ball", "red", "large", (0.0, 0.0, 0.0)),), (0, "left"), (1, 2, 3))
STILL = Scene(MOVING.objects, None, (1, 2, 3))


def finished_sample(processor, raw, train, generator):
    """What the encoder gets of one sample."""
    (found,) = processor.finish(processor.collate([processor.preprocess(raw, train, generator)]))["frames"]
    return found


def keyed(seed=0):
    return torch.Generator().manual_seed(seed)


def video_of(pictures, times_ms):
    """Writes pictures [height, width, 3] without loss."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "rgb24"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(pictures, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def grey(level, height=32, width=32):
    return np.full((height, width, 3), level, np.uint8)


def test_it_fulfils_the_contract_and_travels_to_workers():
    processor = VideoProcessor(sampler=ClipSampler(1.0), mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2])
    assert isinstance(processor, Processor)
    assert isinstance(processor, SceneRenderer)
    assert isinstance(processor, TensorBoardViewer)
    assert pickle.loads(pickle.dumps(processor)) == processor


def test_rendered_scene_shows_each_moment_of_the_motion():
    data = VideoProcessor(scene_frames=12).render(MOVING)
    video = open_video(data)
    assert (video.num_frames, video.duration_s) == (12, pytest.approx(1.5))
    for index, frame in enumerate(video.frames(range(12))):
        views = [np.abs(front_view(MOVING, time / 11) - frame.astype(float)).mean() for time in range(12)]
        assert np.argmin(views) == index
        assert views[index] < 6  # of 255: compression and half resolution of colours


def test_rendering_is_deterministic_and_a_still_scene_is_a_video_too():
    processor = VideoProcessor(scene_frames=4, scene_size_px=32)
    assert len({processor.render(MOVING) for _ in range(40)}) == 1  # with crf about one in five differed
    assert processor.render(MOVING) != processor.render(STILL)
    frames = open_video(processor.render(STILL)).frames(range(4)).astype(int)
    assert np.abs(frames - frames[0]).mean() < 3


def test_sampling_goes_by_time_where_the_frame_rate_varies():
    levels, times_ms = [0, 50, 100, 150, 200], [0, 10, 20, 30, 900]  # the fourth frame stays for most of the clip
    raw = VideoProcessor().decode(video_of([grey(level) for level in levels], times_ms))
    sample = VideoProcessor(num_frames=4, size_px=32, mean=0.0, std=1.0).preprocess(raw, False, keyed())
    middles = (np.arange(4) + 0.5) / 4 * raw.duration_s
    np.testing.assert_allclose(sample["times_s"], middles, rtol=1e-6)
    expected = [150 if time < 0.9 else 200 for time in middles]
    assert sample["frames"][:, 0, 16, 16].tolist() == expected


def test_one_frame_fills_the_whole_sample():
    raw = VideoProcessor().decode(video_of([grey(90)], [0]))
    frames = finished_sample(VideoProcessor(num_frames=3, size_px=32), raw, True, keyed())
    assert frames.shape == (3, 3, 32, 32)
    torch.testing.assert_close(frames, torch.full_like(frames, (90 / 255 - 0.5) / 0.5))


def test_mean_and_std_apply_per_color():
    picture = np.stack([grey(0)[..., 0], grey(102)[..., 0], grey(255)[..., 0]], axis=-1)
    raw = VideoProcessor().decode(video_of([picture], [0]))
    processor = VideoProcessor(num_frames=1, size_px=32, mean=[0.1, 0.2, 0.3], std=[0.1, 0.2, 0.7])
    values = finished_sample(processor, raw, False, keyed())[0, :, 5, 5]
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0, 1.0]))


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (48, 96)])
def test_evaluation_takes_the_central_square(height, width):
    picture = grey(0, height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = 200
    raw = VideoProcessor().decode(video_of([picture], [0]))
    frames = finished_sample(VideoProcessor(num_frames=1, size_px=32, mean=0.0, std=1.0), raw, False, keyed())
    torch.testing.assert_close(frames, torch.full((1, 3, 32, 32), 200 / 255))


def test_training_without_options_crops_as_evaluation_does():
    raw = VideoProcessor().decode(VideoProcessor(scene_frames=1).render(STILL))
    processor = VideoProcessor(num_frames=2, size_px=24)
    train, test = (finished_sample(processor, raw, train, keyed()) for train in (True, False))
    torch.testing.assert_close(train, test)


def test_random_crop_and_flip_are_keyed_and_the_same_for_all_frames():
    raw = VideoProcessor().decode(VideoProcessor(scene_frames=1).render(STILL))
    processor = VideoProcessor(num_frames=3, size_px=24, crop_scale=[0.3, 0.6], flip_probability=0.5)
    first, again, other = (finished_sample(processor, raw, True, keyed(seed)) for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first, first[:1].expand_as(first), rtol=0, atol=0)
    plain = VideoProcessor(num_frames=3, size_px=24)
    mirrored = VideoProcessor(num_frames=3, size_px=24, flip_probability=1.0)
    torch.testing.assert_close(
        finished_sample(mirrored, raw, True, keyed()), finished_sample(plain, raw, True, keyed()).flip(-1)
    )


def test_random_crops_lie_inside_and_cover_the_asked_share():
    for seed in range(100):
        top, left, high, wide = random_crop(60, 80, (0.2, 0.5), keyed(seed))
        assert min(top, left) >= 0
        assert top + high <= 60
        assert left + wide <= 80
        assert 0.18 < high * wide / 4800 < 0.52


def test_collate_pads_shorter_samples_at_the_end_and_masks_them():
    samples = [{"frames": torch.rand(count, 3, 8, 8), "times_s": torch.rand(count)} for count in (2, 4, 1)]
    inputs = VideoProcessor().collate(samples)
    assert inputs["mask"].tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    for sample, frames, mask in zip(samples, inputs["frames"], inputs["mask"], strict=True):
        torch.testing.assert_close(frames[mask], sample["frames"])
        assert (frames[~mask] == 0).all()


def test_samples_of_one_length_have_no_mask():
    samples = [{"frames": torch.rand(3, 3, 8, 8), "times_s": torch.rand(3)} for _ in range(2)]
    assert list(VideoProcessor().collate(samples)) == ["frames"]


def test_views_cover_different_moments():
    raw = VideoProcessor().decode(video_of([grey(10 * i) for i in range(20)], [100 * i for i in range(20)]))
    views = VideoProcessor(num_frames=2, size_px=32, mean=0.0, std=1.0).views(raw, 2)
    levels = [view["frames"][:, 0, 0, 0].tolist() for view in views]
    assert levels == [[20, 120], [70, 170]] or levels == [[20, 120], [70, 170]][::-1]


def test_thumbnail_shows_the_first_and_the_last_frame():
    raw = VideoProcessor().decode(video_of([grey(level) for level in (0, 80, 160, 240)], [0, 100, 200, 300]))
    strip = np.asarray(VideoProcessor().thumbnail(raw))
    assert strip.shape == (32, 128, 3)
    assert strip[16, [16, 48, 80, 112], 0].tolist() == [0, 80, 160, 240]
    tall = VideoProcessor().decode(video_of([grey(0, 256, 128)], [0]))
    assert VideoProcessor().thumbnail(tall).size == (256, 128)


def test_unreadable_file_is_refused():
    with pytest.raises(UnreadableFileError, match="empty"):
        VideoProcessor().decode(b"", ".mp4")


@pytest.mark.parametrize(
    "setting",
    [
        {"num_frames": 0}, {"size_px": 0}, {"scene_frames": 0}, {"scene_size_px": 63}, {"flip_probability": 1.5},
        {"crop_scale": [0.5]}, {"crop_scale": [0.8, 0.2]}, {"std": 0.0}, {"mean": [0.5, 0.5]}, {"backends": ["opencv"]},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        VideoProcessor(**setting)


def test_tensorboard_gets_the_clip_as_an_animation(tmp_path):
    processor = VideoProcessor(scene_frames=12)
    with SummaryWriter(tmp_path) as writer:
        processor.show(writer, "clip", processor.decode(processor.render(MOVING)), 3)
    log = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    (event,) = log.Images("clip")
    animation = Image.open(io.BytesIO(event.encoded_image_string))
    assert event.step == 3
    assert (animation.n_frames, animation.size) == (12, (64, 64))
    assert animation.info["duration"] == pytest.approx(125, abs=5)  # ms: 8 frames per second
    for frame, time in ((0, 0.0), (11, 1.0)):
        animation.seek(frame)
        shown = np.asarray(animation.convert("RGB"), float)
        errors = [np.abs(front_view(MOVING, moment) - shown).mean() for moment in (time, 1 - time)]
        assert errors[0] < errors[1] / 2


# clips in memory


def test_frames_in_memory_are_read_as_their_file_is():
    pictures = [np.random.default_rng(n).integers(0, 256, (40, 56, 3), np.uint8) for n in range(10)]
    data = video_of(pictures, [100 * n for n in range(10)])
    clip = np.stack(pictures)
    for sampler in (UniformSampler(), ClipSampler(0.4)):
        processor = VideoProcessor(num_frames=4, size_px=24, sampler=sampler)
        expected = finished_sample(processor, processor.decode(data), False, keyed())
        for value in (clip, clip / 255, torch.from_numpy(clip), torch.from_numpy(clip).permute(0, 3, 1, 2)):
            found = processor.decode({"frames": value, "fps": 10})
            torch.testing.assert_close(finished_sample(processor, found, False, keyed()), expected, rtol=0, atol=0)
        assert processor.thumbnail(found) == processor.thumbnail(processor.decode(data))
    processor = VideoProcessor(num_frames=4, size_px=24)
    frames = finished_sample(processor, processor.decode(clip), False, keyed())  # the rate does not matter
    expected = finished_sample(processor, processor.decode(data), False, keyed())
    torch.testing.assert_close(frames, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 20, 20, 4), np.uint8), r"got uint8 of shape \[4, 20, 20, 4\]; expected an array"),
        (np.zeros((0, 20, 20, 3), np.uint8), "shape .0, 20, 20, 3.; expected"),
        (np.zeros((4, 20, 20, 3), np.int32), "got int32 .*; expected uint8 or floats"),
        (np.full((4, 20, 20, 3), np.nan), "expected floats in .0, 1."),
        (np.zeros((4, 90, 90, 3), np.uint8), "at most 5000 pixels"),
        ({"frames": np.zeros((4, 20, 20, 3)), "fps": "10"}, "fps is '10'; expected"),
        ({"frames": np.zeros((4, 20, 20, 3)), "rate": 10}, "keys 'frames', 'rate'; expected"),
        ([Image.new("RGB", (20, 20))] * 3, "got list; expected"),
    ],
)
def test_what_is_no_clip_in_memory_is_refused(value, message):
    with pytest.raises(UnreadableFileError, match=message):
        VideoProcessor(max_pixels=5000).decode(value)


def test_only_arrays_of_frames_are_taken():
    takes = VideoProcessor().takes
    shapes = [(4, 20, 20, 3), (4, 3, 20, 20), (20, 20, 3), (4, 20, 20, 1)]
    assert [takes(np.zeros(shape)) for shape in shapes] == [True, False, False, False]
    assert takes({"frames": None})
    assert not takes([Image.new("RGB", (20, 20))] * 3)


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\0\0\0\x18ftypM4A ", b"RIFF\0\0\0\0WAVE", b"\x89PNG\r\n",
        b"G" * 100, b"G" + b"\0" * 1000,
    ],
)  # fmt: skip
def test_the_first_bytes_of_other_files_show_nothing(head):
    assert VideoProcessor().suffix_of(head) == ""


@pytest.mark.parametrize(
    ("head", "suffix"), [(b"\0\0\0\x14ftypqt  ", ".mov"), (b"\0\0\0\x08wide", ".mov"), (b"OggS", ".ogv")]
)
def test_the_first_bytes_show_the_format(head, suffix):
    assert VideoProcessor().suffix_of(head) == suffix
