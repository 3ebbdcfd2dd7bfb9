"""Writes scenes of the shapes world as H.264 MP4 files, so that they are read as a user's own videos are.

The decision: a single encoder thread and a constant quantiser, so that the same scene gives the same bytes. With crf,
x264's macroblock tree makes small pictures differ from run to run.
"""

from __future__ import annotations

import io

import numpy as np

from multicoca.data.shapes import Scene
from multicoca.data.shapes.geometry import front_view
from multicoca.modality import require

FRAMES_PER_S = 8
_X264 = {"qp": "15", "preset": "veryfast", "threads": "1"}  # qp 15: little noise even on pictures of 64 px


def write_scene(scene: Scene, size_px: int, num_frames: int) -> bytes:
    """Returns the bytes of a video that shows the scene from the start to the end of its motion.

    Args:
        scene: what to show.
        size_px: height and width, even.
        num_frames: how many frames; a single one shows the scene at rest.

    Raises:
        ImportError: PyAV is not installed.
    """
    av = require("av", "video")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=_X264)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        for picture in _pictures(scene, size_px, num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _pictures(scene: Scene, size_px: int, num_frames: int) -> list[np.ndarray]:
    if scene.motion is None or num_frames == 1:
        return [front_view(scene, 0.5, size_px)] * num_frames  # nothing moves, so all frames are equal
    return [front_view(scene, index / (num_frames - 1), size_px) for index in range(num_frames)]
