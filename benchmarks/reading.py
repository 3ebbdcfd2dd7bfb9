"""Seconds to read clean files of every kind, against another checkout in turns: python benchmarks/reading.py CHECKOUT

Both checkouts read the same files in processes of one thread, which take turns; the least of all rounds counts. A file
is decoded, and of a video 8 frames are read. With --measure FOLDER a process measures alone.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROUNDS, REPEATS = 4, 7
NUM_POINTS, NUM_LINES, NUM_SAMPLES = 100_000, 5_000, 500


def write_files(folder: Path) -> None:
    """Writes a clean file of every kind."""
    _write_clouds(folder)
    _write_pictures(folder)
    _write_clips(folder)
    _write_lists(folder)


def _write_clouds(folder: Path) -> None:
    import open3d_files  # of this folder: open3d and trimesh write real files

    open3d_files.write(folder, NUM_POINTS)


def _write_pictures(folder: Path) -> None:
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (30, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    for suffix in ("jpg", "png", "webp", "gif", "bmp"):
        Image.fromarray(pixels).save(folder / f"picture.{suffix}")


def _write_clips(folder: Path) -> None:
    import av

    codecs = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "ts": "libx264",
              "mpg": "mpeg2video", "flv": "flv1", "wmv": "wmv2", "gif": "gif"}  # fmt: skip
    formats = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}
    rng = np.random.default_rng(0)
    for suffix, codec in codecs.items():
        with av.open(str(folder / f"clip.{suffix}"), "w", format=formats.get(suffix, suffix)) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "rgb8" if suffix == "gif" else "yuv420p"
            for _ in range(50):
                picture = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


def _write_lists(folder: Path) -> None:
    rows = [{"file_name": f"{i}.jpg", "text": f"a red cube left of ball number {i}"} for i in range(NUM_LINES)]
    for name in ("json_lines", "comma_lines"):
        (folder / name).mkdir()
        for row in rows:
            (folder / name / row["file_name"]).touch()
    (folder / "json_lines" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f'{row["file_name"]},"{row["text"]}"' for row in rows]
    (folder / "comma_lines" / "metadata.csv").write_text("\n".join(["file_name,text", *lines, ""]))
    with tarfile.open(folder / "samples.tar", "w") as tar:
        for i in range(NUM_SAMPLES):
            for suffix, content in (("jpg", bytes(2000)), ("txt", b"a red cube"), ("json", b'{"caption": "a cube"}')):
                header = tarfile.TarInfo(f"{i:06d}.{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def readers(folder: Path) -> dict[str, Callable[[], object]]:
    """Returns what reads each file of a folder, by its name."""
    from multicoca_image import ImageProcessor
    from multicoca_points import read_points
    from multicoca_video import open_video

    from multicoca.data.shard_scan import scan_shard
    from multicoca.data.sources import Folder

    images = ImageProcessor()
    found: dict[str, Callable[[], object]] = {}
    for path in sorted(folder.iterdir()):
        kind = path.name.partition(".")[0]
        if kind in ("cloud", "mesh"):
            found[path.name] = lambda path=path: read_points(path)
        elif kind.startswith("picture"):
            found[path.name] = lambda path=path: images.decode(path)
        elif kind == "clip":
            found[path.name] = lambda path=path: _frames(open_video(path, ("pyav",)))
            if path.suffix in (".mp4", ".mkv"):
                found[f"{path.name} (decord)"] = lambda path=path: _frames(open_video(path, ("decord", "pyav")))
        elif kind.endswith("lines"):
            found[kind] = lambda path=path: Folder(path).list_items({"image": images}, 0)
        else:
            found[path.name] = lambda path=path: scan_shard(str(path))
    return found


def _frames(video: object) -> object:
    return video.frames(np.linspace(0, video.num_frames - 1, 8).round().astype(int))


def measure(folder: Path) -> dict[str, float]:
    """Returns the least seconds of each reader."""
    seconds = {}
    for name, read in readers(folder).items():
        read()
        own = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            read()
            own.append(time.perf_counter() - start)
        seconds[name] = min(own)
    return seconds


def main() -> None:
    """Prints the table."""
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]))))
        return
    from measuring import print_about

    print_about()
    here, other = Path(__file__).resolve().parent.parent, Path(sys.argv[1]).resolve()
    best: dict[str, dict[str, float]] = {"before": {}, "now": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for _ in range(ROUNDS):
            for label, checkout in (("before", other), ("now", here)):
                paths = os.pathsep.join(map(str, (checkout, checkout / "modalities")))
                environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "--measure", name]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                for kind, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                    best[label][kind] = min(seconds, best[label].get(kind, seconds))
    print("\n| file | before, ms | now, ms | speed now / before |\n|---|---|---|---|")
    for kind, before in best["before"].items():
        now = best["now"][kind]
        print(f"| {kind} | {before * 1e3:.2f} | {now * 1e3:.2f} | {before / now:.2f} |")


if __name__ == "__main__":
    main()
