"""The real commands in real processes: train, stop, resume, evaluate, caption, index, search, doctor."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import DEADLINE_S

ROOT = Path(__file__).parent.parent.parent
SIGNAL = ROOT / "tests" / "multicoca_signal"
TINY = [
    "data.source.train_items=48", "data.source.test_items=12", "data.source.composition_items=4", "data.batch_size=16",
    "train.precision=fp32", "evaluation.gallery=8", "evaluation.draws=2", "evaluation.probe_items=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, with its own cache and the signal modality installed for this process tree."""
    folder = tmp_path_factory.mktemp("commands")
    site = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site]
    source = folder / "signal_source"
    shutil.copytree(SIGNAL, source)
    subprocess.run([*map(str, install), str(source)], check=True)
    environment = {**os.environ, "MULTICOCA_CACHE": str(folder / "cache"), "PYTHONPATH": str(site)}
    return folder, environment


def written(place, pattern: str) -> Path:
    """Returns the folder of the shapes world whose name fits."""
    return next(path for path in (place[0] / "cache" / "shapes").glob(pattern) if path.is_dir())


def multicoca(place, *arguments: str, status: int = 0) -> str:
    folder, environment = place
    command = [sys.executable, "-m", "multicoca.cli.main", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == status, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(place):
    """A model of image, video, points and signal, trained a few steps through the command."""
    output = multicoca(place, "train", "modality=[image,video,points,signal]", "name=all", "train.steps=6", *TINY)
    return place[0] / "runs" / "all", output


def test_train_writes_all_it_promises(trained):
    folder, output = trained
    assert {"model", "tensorboard", "results.json", "report.html", "config.yaml"} <= {p.name for p in folder.iterdir()}
    assert {p.name for p in (folder / "model").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "tokenizer.json",
        "README.md",
    }
    results = json.loads((folder / "results.json").read_text())
    assert set(results["modalities"]) == {"image", "video", "points", "signal"}
    for found in results["modalities"].values():
        assert (found["used"], found["listed"]) == (12, 12)
        assert set(found["retrieval"]["source_to_text"]) == {"recall@1", "recall@5", "recall@10", "median_rank"}
        assert {"exact_match", "attributes", "bleu4", "rouge_l", "cider_d"} <= set(found["captioning"])
        assert {"exact_match", "attributes"} <= set(found["composition"])
    assert {"image_to_points", "points_to_image", "video_to_points"} <= set(results["across"])
    assert set(results["seconds"]) == {"data", "train", "evaluate"}
    assert results["peak_memory_gib"] > 0
    assert "report.html" in output


def test_a_finished_run_is_not_trained_again_and_another_configuration_is_refused(place, trained):
    folder, _ = trained
    checkpoints = sorted((folder / "checkpoints").iterdir())
    stamp = checkpoints[-1].stat().st_mtime_ns
    multicoca(place, "train", "modality=[image,video,points,signal]", "name=all", "train.steps=6", *TINY)
    assert sorted((folder / "checkpoints").iterdir())[-1].stat().st_mtime_ns == stamp
    message = multicoca(place, "train", "modality=[image]", "name=all", "train.steps=7", *TINY, status=2)
    assert "another configuration" in message
    assert "fresh=true" in message


def test_training_starts_from_a_model_and_adds_a_modality(place):
    small = multicoca(place, "train", "modality=[image]", "name=first", "train.steps=2", *TINY)
    assert "report.html" in small
    model = place[0] / "runs" / "first" / "model"
    start = ["train", f"start_from={model}", "modality=[points]", "name=second", "train.steps=2", *TINY]
    assert "model.width: 128 there, 64 here" in multicoca(place, *start, "model.width=64", status=2)
    output = multicoca(place, *start)
    assert "new: encoders.points, heads.points" in output
    results = json.loads((place[0] / "runs" / "second" / "results.json").read_text())
    assert set(results["modalities"]) == {"image", "points"}
    assert "start_from: null" in (place[0] / "runs" / "second" / "model" / "config.yaml").read_text()


def test_caption_index_and_search(place, trained):
    folder, _ = trained
    files = [written(place, f"test-{name}-*") for name in ("image", "video", "points", "signal")]
    chosen = [next(path for path in sorted(f.iterdir()) if path.suffix != ".jsonl") for f in files]
    lines = multicoca(place, "caption", str(folder / "model"), *map(str, chosen)).splitlines()
    assert sum("\t" in line for line in lines) == 4
    broken = place[0] / "broken"
    broken.mkdir()
    (broken / "bad.jpg").write_bytes(b"not a picture")
    (broken / "notes.txt").write_text("hello")
    message = multicoca(place, "caption", str(folder / "model"), str(broken / "bad.jpg"), status=1)
    assert "bad.jpg" in message
    index = place[0] / "scans.index"
    multicoca(place, "index", str(folder / "model"), *map(str, files), str(broken), "--out", str(index))
    skipped = [json.loads(line) for line in (index / "skipped.jsonl").read_text().splitlines()]
    assert {Path(line["file"]).name for line in skipped} >= {"bad.jpg", "notes.txt"}
    assert json.loads((index / "index.json").read_text())["count"] == 48
    found = multicoca(place, "search", str(index), "a red ball", "--top", "3").splitlines()
    assert sum(line.count("\t") == 2 for line in found) == 3
    own = multicoca(place, "search", str(index), str(chosen[0]), "--top", "1")
    assert chosen[0].name in own
    assert "\timage\t" in own


def test_evaluate_a_model_folder(place, trained):
    folder, _ = trained
    sizes = [argument for argument in TINY if not argument.startswith(("train.", "data.batch"))]
    multicoca(place, "evaluate", f"model={folder / 'model'}", "out=evaluated", *sizes)
    again = json.loads((place[0] / "evaluated" / "results.json").read_text())
    first = json.loads((folder / "results.json").read_text())
    assert again["modalities"]["image"]["captioning"] == first["modalities"]["image"]["captioning"]


def test_sigterm_saves_and_the_same_command_goes_on(place):
    folder, environment = place
    arguments = ["train", "modality=[image]", "name=stopped", "train.steps=400", "train.checkpoint_every=1000", *TINY]
    command = [sys.executable, "-m", "multicoca.cli.main", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    events = folder / "runs" / "stopped" / "tensorboard"
    deadline = time.monotonic() + DEADLINE_S
    while not (events.is_dir() and any(file.stat().st_size > 2000 for file in events.iterdir())):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "training did not start"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    saved = [path.name for path in (folder / "runs" / "stopped" / "checkpoints").iterdir()]
    assert len(saved) == 1
    step = int(saved[0].removeprefix("step_"))
    assert 0 < step < 400
    assert f"resuming at step {step}" in multicoca(place, *arguments)


def test_your_own_folder_with_broken_files(place):
    folder, environment = place
    data = folder / "own"
    shutil.copytree(written(place, "train-image-*"), data)
    clouds = written(place, "train-points-*")
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    rows = [{"file_name": line["file_name"], "text": line["text"]} for line in lines]
    for path in sorted(clouds.glob("*.ply")):
        shutil.copy(path, data)
        rows.append({"file_name": path.name, "text": "a cloud of points", "label": path.stem[-1]})
    (data / rows[0]["file_name"]).write_bytes(b"broken")
    rows += [{"file_name": "missing.jpg", "text": "a"}, {"file_name": rows[1]["file_name"], "text": "twice"}]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny = [argument for argument in TINY if "source" not in argument]
    common = [
        "train",
        "data=folder",
        f"data.root={data}",
        "model=tiny",
        "modality=[image,points]",
        "train.steps=8",
        *tiny,
    ]
    multicoca(place, *common, "name=own", "data.max_broken_share=0.2", "data.source.test_share=0.2")
    ledger = [json.loads(line) for line in (folder / "runs" / "own" / "ledger.jsonl").read_text().splitlines()]
    # the second line of a file is another caption of it
    assert {Path(line["file"]).name for line in ledger} == {rows[0]["file_name"], "missing.jpg"}
    message = multicoca(place, *common, "name=strict", "data.max_broken_share=0.01", status=2)
    assert "max_broken_share" in message


def test_doctor_and_help(place):
    output = multicoca(place, "doctor")
    assert "modality signal" in output
    assert "reads .jpg" in output
    assert "evaluate" in multicoca(place, "--help")
    assert "there is no command 'trian'" in multicoca(place, "trian", status=2)
    assert "expected a folder with" in multicoca(place, "caption", "./nowhere", "x.jpg", status=2)
