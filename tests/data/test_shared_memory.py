"""Where shared memory is small fewer workers are started, or none, and nothing hangs."""

import os
import shutil
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import pytest
from patience import DEADLINE_S

from multicoca.data import shared_memory
from multicoca.data.shared_memory import fitting_workers

Usage = namedtuple("Usage", "total used free")
MIB = 2**20
EVALUATE = """
import sys, torch, warnings
from pathlib import Path
from PIL import Image
from multicoca_image import ImageProcessor
from multicoca.data.loader import Steps, evaluation_batches, training_batches
from multicoca.data.sample import Item
from multicoca.text.tokenizer import TextTokenizer
warnings.simplefilter("error" if sys.argv[2] == "quiet" else "ignore")
files = [Path(sys.argv[1]) / f"{i}.png" for i in range(96)]
items = [Item(str(i), file, "image", ("a cube",)) for i, file in enumerate(files)]
processor, total = ImageProcessor(size_px=224), 0.0
for read, inputs, problems in evaluation_batches(items, processor, 64, 2):
    assert not problems
    total += inputs["pixels"].double().sum().item()
steps = Steps({"image": items}, {"image": processor}, TextTokenizer.learn(["a cube"], 300, 8), 32, 0)
for batches in training_batches(steps, 0, 3, 2):
    total += batches[0].inputs["pixels"].double().sum().item()
print(total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
@pytest.mark.parametrize(
    ("free", "fitting"), [(1000 * MIB, 4), (64 * MIB, 1), (40 * MIB, 1), (30 * MIB, 0), (64 * 1024, 0)]
)
def test_as_many_workers_are_started_as_there_is_room_for(monkeypatch, free, fitting):
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: Usage(0, 0, free))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fitting_workers(4, 10 * MIB) == fitting
    assert len(caught) == (fitting < 4)
    if fitting < 4:
        assert f"room for {fitting} of 4 data workers" in str(caught[0].message)
    assert fitting_workers(0, 10 * MIB) == 0


def can_make_it_small() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/dev/shm"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_make_it_small(), reason="this user may not mount a smaller /dev/shm")
def test_evaluation_and_training_give_the_same_whatever_the_size_of_shared_memory(tmp_path):
    from PIL import Image

    for i in range(96):
        Image.new("RGB", (64, 64), (i, 2 * i, 255 - i)).save(tmp_path / f"{i}.png")
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = []
    for size in ("1g", "64m", "64k"):
        mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {script} {tmp_path} "
        mount += "quiet" if size == "1g" else "warned"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount], env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
            check=False, cwd=Path(__file__).parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(float(done.stdout.split()[-1]))
    assert results[0] == results[1] == results[2]
