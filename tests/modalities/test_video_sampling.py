import numpy as np
import pytest
import torch
from multicoca_video import ClipSampler, UniformSampler, frames_at


def keyed(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_times_are_the_middles_of_equal_segments():
    times = UniformSampler().times(8.0, 4, False, keyed())
    np.testing.assert_allclose(times, [1, 3, 5, 7])


def test_training_times_stay_in_their_segments_and_follow_the_generator():
    times = UniformSampler().times(8.0, 4, True, keyed(1))
    assert (times // 2 == np.arange(4)).all()
    assert not np.allclose(times, [1, 3, 5, 7])
    np.testing.assert_array_equal(times, UniformSampler().times(8.0, 4, True, keyed(1)))
    assert (times != UniformSampler().times(8.0, 4, True, keyed(2))).all()


def test_uniform_views_look_at_different_moments():
    np.testing.assert_allclose(UniformSampler().views(8.0, 2, 2), [[1, 5], [3, 7]])


def test_clip_is_central_in_evaluation_and_random_in_training():
    sampler = ClipSampler(2.0)
    np.testing.assert_allclose(sampler.times(10.0, 2, False, keyed()), [4.5, 5.5])
    starts = np.array([sampler.times(10.0, 2, True, keyed(seed))[0] - 0.5 for seed in range(200)])
    assert starts.min() >= 0
    assert starts.max() <= 8
    assert starts.min() < 1
    assert starts.max() > 7
    np.testing.assert_allclose(sampler.times(1.0, 2, True, keyed()), [0.25, 0.75])  # shorter than the clip


def test_clip_views_are_those_of_pytorchvideo():
    pytest.importorskip("pytorchvideo")
    views = ClipSampler(2.0).views(10.0, 2, 4)
    np.testing.assert_allclose(views, [[0.5 + start, 1.5 + start] for start in (0, 2, 4, 6)])
    np.testing.assert_allclose(ClipSampler(2.0).views(1.0, 2, 3), [[0.25, 0.75]] * 3)


def test_frame_on_screen_is_the_last_one_that_began():
    frame_times = np.array([0, 0.04, 0.08, 1.0, 1.04, 3.0])
    times = np.array([-1, 0, 0.039, 0.04, 0.5, 0.99, 1.0, 2.9, 99])
    assert frames_at(times, frame_times).tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 5]


def test_rounded_frame_times_do_not_shift_the_frames():
    exact = np.arange(300) / 30
    rounded = exact.astype(np.float32).astype(np.float64)
    assert frames_at(exact, rounded).tolist() == list(range(300))


def test_clip_duration_must_be_positive():
    with pytest.raises(ValueError, match="clip_duration_s"):
        ClipSampler(0.0)
