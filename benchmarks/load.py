"""CPU time of loading a model and writing a first caption, against importing torch and timm alone.

    python benchmarks/load.py [ROUNDS]

Every run is a fresh process; the two take turns, and the medians of user plus system time over all threads count. The
model is untrained and small, so its caption has the greatest length. `ONE_THREAD` leaves out the time that OpenMP's
second thread spends waiting, which grows with whatever else the machine does.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import print_about
from PIL import Image

from multicoca.cli.compose import compose_config
from multicoca.runs.model_folder import build_bundle
from multicoca.runs.save import save
from multicoca.text.tokenizer import TextTokenizer

ROUNDS = 9
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
IMPORTS = "import torch, timm"
LOAD = "import sys, multicoca; m = multicoca.load(sys.argv[1]"
SCRIPTS = {
    "import torch, timm": IMPORTS,
    "the same, import multicoca.api": f"{IMPORTS}; import multicoca.api",
    "multicoca.load": f"{LOAD})",
    "load, caption a picture": f"{LOAD}); m.caption([sys.argv[2]])",
}


def cpu_seconds(script: str, *arguments: str, environment: dict[str, str]) -> float:
    """Runs a script in a fresh process; returns its user and system time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=os.environ | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_files(folder: Path) -> tuple[str, str]:
    """Writes a small image model and a picture; returns their paths."""
    config = compose_config("train_shapes", ["modality=[image]"])
    tokenizer = TextTokenizer.learn(["a red cube", "a blue ball"], 300, config.model.context_length)
    save(folder / "model", build_bundle(config.spec, tokenizer), config, "")
    Image.new("RGB", (64, 64), "red").save(folder / "picture.jpg")
    return str(folder / "model"), str(folder / "picture.jpg")


def main() -> None:
    """Prints the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print_about()
    print(f"instructions: {torch.backends.cpu.get_cpu_capability()}; load of the machine: {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as name:
        paths = write_files(Path(name))
        for label, environment in (("all threads", {}), ("one thread", ONE_THREAD)):
            seconds: dict[str, list[float]] = {script: [] for script in SCRIPTS}
            for _ in range(rounds + 1):  # the first one fills the disk's cache
                for script, code in SCRIPTS.items():
                    seconds[script].append(cpu_seconds(code, *paths, environment=environment))
            medians = {script: statistics.median(own[1:]) for script, own in seconds.items()}
            print(f"\n| {label} | CPU seconds | ratio |\n|---|---|---|")
            for script, median in medians.items():
                print(f"| {script} | {median:.2f} | {median / medians['import torch, timm']:.3f} |")


if __name__ == "__main__":
    main()
