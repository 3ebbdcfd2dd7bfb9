"""The README's commands and code do what they say: each runs as it stands, with small sizes added."""

import functools
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
from patience import DEADLINE_S
from PIL import Image
from safetensors.torch import save_file
from small_coca import SMALL, randomise
from small_models import write_model, write_scenes

from multicoca.cli.compose import compose_training

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
# what cannot run here, by a piece of the command, and the reason
NOT_RUN = {
    "pip install -e": "CI installs by this very line",
    "pip install ./tests": "the fixture installs it without the network",
    "convert open_clip laion/": "it downloads weights from the hub; the fixture converts random ones",
    "s3://bucket": "it needs that bucket",
    "--nnodes 4": "it needs four machines",
    "hydra/launcher=slurm": "it needs a Slurm cluster; test_cluster.py has one that is played",
}
FEW_ITEMS = ["data.workers=0", "evaluation.gallery=2", "evaluation.draws=1", "evaluation.meteor=false"]
FEW = [
    "data.batch_size=4", "train.cpu_processes=1", "train.precision=fp32", "train.steps=1", "train.evaluate_every=0",
    *FEW_ITEMS,
]  # fmt: skip
SCENES = ["data.source.train_items=8", "data.source.test_items=4", "data.source.composition_items=2"]
NARROW = [
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.unimodal_layers=1", "model.multimodal_layers=1",
    "model.embedding_width=32", "modalities.image.processor.size_px=36", "modalities.image.encoder.image_size_px=36",
    "+modalities.image.encoder.timm_options={embed_dim:32,depth:1,num_heads:2}",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shown() -> list[str]:
    """Every command of the README, one for each part of a line with &&."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [command.strip() for line in lines for command in line.split("&&") if command.strip()]


def needed_reason(command: str) -> str | None:
    return next((reason for piece, reason in NOT_RUN.items() if piece in command), None)


def small(command: str) -> list[str]:
    """The command's words, with small sizes and two processes where it asks for eight."""
    words = shlex.split(command.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    if "multicoca evaluate" in command:
        return [*words, *SCENES, *FEW_ITEMS] if "data=" not in command else [*words, *FEW_ITEMS]
    if "train" not in " ".join(words[:5]):
        return words
    words += FEW  # the last of two settings counts
    if not any(word.startswith("data.root=") or word == "data=together" for word in words):
        words += SCENES
    return words + NARROW if "experiment=coca" in command else words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the README speaks of, and the environment of its commands."""
    folder = tmp_path_factory.mktemp("readme")
    kinds = {"image": "photo", "video": "clip", "points": "room"}
    for modality, name in kinds.items():
        (file,) = write_scenes(folder, range(1), modality)
        file.rename(folder / f"{name}{file.suffix}")
    write_scenes(folder / "scans", range(3), "points")
    write_data(folder / "my_data", ["image", "video", "points"])
    write_data(folder / "my_scans", ["points"])
    write_model(folder / "runs" / "shapes" / "model", modality="image,video,points")
    save_file(
        randomise(open_clip.CoCa(**{**SMALL, "embed_dim": 128})).state_dict(), folder / "open_clip_model.safetensors"
    )
    site, source = folder / "site", folder / "signal"
    shutil.copytree(ROOT / "tests" / "multicoca_signal", source)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*map(str, install), str(source)], check=True)
    environment = {
        **os.environ,
        "MULTICOCA_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
    }
    run(
        folder,
        environment,
        ["multicoca", "convert", "open_clip", "open_clip_model.safetensors", "--out", "models/coca_l14"],
    )
    return folder, environment


@pytest.fixture
def web(place):
    """The folder behind a server on this machine, in place of example.org."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def write_data(folder: Path, modalities: list[str]) -> None:
    """Writes files with the lines that the README shows, and more of each kind, so that all splits have some."""
    lines = [json.loads(line) for line in "".join(blocks("json")).splitlines()]
    endings = {".jpg": "image", ".mp4": "video", ".ply": "points"}
    lines = [line for line in lines if endings[Path(line["file_name"]).suffix] in modalities]
    for modality in modalities:
        for number, file in enumerate(write_scenes(folder / modality, range(10), modality)):
            split = "test" if number > 5 else "train"
            lines.append({"file_name": f"{modality}/{file.name}", "text": f"number {number} of them", "split": split})
    for line in lines[: -10 * len(modalities)]:
        target = folder / line["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((folder / endings[target.suffix]).iterdir()), target)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def run(folder: Path, environment: dict[str, str], words: list[str]) -> str:
    programs = {"multicoca": ["-m", "multicoca.cli.main"], "torchrun": ["-m", "torch.distributed.run"]}
    command = [sys.executable, *programs[words[0]], *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_what_is_not_run_is_still_there():
    for piece in NOT_RUN:
        assert piece in README


def test_every_command_runs_as_it_stands(place, web):
    folder, environment = place
    ran = [
        command for command in shown() if command.startswith(("multicoca", "torchrun")) and not needed_reason(command)
    ]
    assert len(ran) > 20
    for command in ran:
        run(folder, environment, small(command.replace("https://example.org/", web)))


def test_other_commands_are_those_of_a_shell():
    left = [command for command in shown() if not command.startswith(("multicoca", "torchrun"))]
    assert {command.split()[0] for command in left if not needed_reason(command)} <= {
        "python3",
        ".",
        "pytest",
        "export",
    }


def test_the_code_runs_as_it_stands(place, web, monkeypatch):
    folder, _ = place
    monkeypatch.chdir(folder)
    picture = (folder / "photo.jpg").read_bytes()
    (folder / "b.png").unlink(missing_ok=True)
    Image.open("photo.jpg").save("b.png")
    (folder / "photos").mkdir(exist_ok=True)
    shutil.copy("photo.jpg", "photos")
    names = {
        "requests": SimpleNamespace(get=lambda url: SimpleNamespace(content=picture)),
        "url": "https://example.org/photo.jpg",
        "Image": Image,
        "Path": Path,
        "files": ["photo.jpg", "b.png"],
        "texts": ["a red cube", "a blue ball"],
        "frames": np.zeros((4, 48, 48, 3), np.uint8),
        "xyz": np.random.default_rng(0).normal(size=(2000, 3)),
    }
    python = blocks("python")
    assert len(python) >= 4
    for block in python:
        exec(block.replace("https://example.org/", web), names)
    assert names["similarity"].shape == (2, 2)


# what settings in running text need beside them
WITH = {
    "modalities.image.encoder.name=resnet50.a1_in1k": ["modality=[image_convnext]"],
    "parallel.": ["parallel=fsdp"],
    "data.weights=": ["data.batches_per_step=8"],
    "data.temperature=": ["data.batches_per_step=8"],
    "data.root=": ["data=folder", "model=tiny", "modality=[image]"],
}


def test_every_setting_in_the_text_can_be_composed(place, monkeypatch):
    monkeypatch.syspath_prepend(place[0] / "site")
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    found = {word for word in re.findall(r"`([^`\s]+=[^`\s]+)`", text) if re.match(r"[a-z_./]+=[^.=]", word)}
    assert len(found) > 20
    refused = {}
    for setting in sorted(found):
        more = next((words for piece, words in WITH.items() if setting.startswith(piece)), [])
        try:
            compose_training([*more, setting])
        except ValueError as error:
            refused[setting] = str(error)
    assert not refused
