"""A training run that is killed at random moments, beside one that is not: all losses and the weights must be equal.

python benchmarks/kills.py [KILLS] [RANKS] [SEED]      20 kills, 1 process and a new seed by default; RANKS=2: torchrun

A small run of all modalities, with a data worker for each rank, an average of the weights and a checkpoint every 5 of
60 steps, gets SIGKILL while it starts, waits for its first batch, takes a step, writes a checkpoint and evaluates: all
of its processes, or one of them. The same command follows each time; torchrun starts again by itself when one rank is
lost. Losses are compared as TensorBoard shows them: every step once, equal to the bit; so are all weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from measuring import print_about
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 60
SETTINGS = [
    f"train.steps={STEPS}", "train.checkpoint_every=5", "train.log_every=1", "train.evaluate_every=0",
    "train.cpu_processes=1", "optim.ema_decay=0.9", "data.batch_size=8", "data.workers=1",
    "data.source.train_items=48", "data.source.test_items=8", "data.source.composition_items=2",
    "evaluation.gallery=4", "evaluation.draws=1",
    "model.width=32", "model.num_heads=2", "model.mlp_width=64", "model.embedding_width=32",
]  # fmt: skip
KINDS = ("start", "first batch", "step", "checkpoint")
WRITING_S = 0.1  # about what writing a checkpoint of this size takes
DEADLINE_S = 180.0


@dataclass(frozen=True)
class Moment:
    """When a kill comes and whom it hits.

    Attributes:
        kind: what the run shall be doing.
        victim: "all", "main" (the process, or one rank) or "worker" (one of its data workers).
        steps: how many steps a start may take before, where the kind is "step".
        share: of the time that the kind usually takes, in [0, 1).
    """

    kind: str
    victim: str
    steps: int
    share: float


def drawn_moments(seed: int, count: int) -> list[Moment]:
    """Draws the moments; each kind comes as often, and the last kill hits the evaluation."""
    draw = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(count - 1)]
    draw.shuffle(kinds)
    return [
        Moment(kind, draw.choice(("all", "all", "main", "worker")), draw.randrange(8), draw.random())
        for kind in (*kinds, "evaluation")
    ]


class Run:
    """The command, its processes and its log, over all starts."""

    def __init__(self, folder: Path, ranks: int):
        self.folder, self.ranks = folder / "run", ranks
        launch = ["-m", "multicoca.cli.main", "train"]
        if ranks > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            launch += ["--max-restarts", "1000", "-m", "multicoca.cli.train"]
        self.command = [sys.executable, *launch, *SETTINGS, f"output={folder}", "name=run"]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "MULTICOCA_CACHE": str(folder / "cache")}
        folder.mkdir()
        self.log = folder / "log.txt"
        self.start()

    def start(self) -> None:
        """Gives the command."""
        self.since, self.from_byte = time.monotonic(), self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def text(self, from_byte: int | None = None) -> str:
        """Returns the log since the last start, or since some place."""
        with self.log.open("rb") as log:
            log.seek(self.from_byte if from_byte is None else from_byte)
            return log.read().decode(errors="replace")

    def steps(self) -> list[int]:
        """Returns the steps that the progress bar has shown since the last start."""
        return [int(step) for step in re.findall(rf"training:[^\r\n]*?(\d+)/{STEPS} \[", self.text())]

    def is_writing(self) -> bool:
        """Whether a checkpoint is on its way to the disk."""
        return any((self.folder / "checkpoints").glob("step_*.part"))

    def wait(self, condition: Callable[[], bool], what: str) -> float:
        """Waits until something holds; returns when that was.

        Raises:
            RuntimeError: the run ended before, or it takes too long.
        """
        until = time.monotonic() + DEADLINE_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"waited for {what} in vain; the end of {self.log}:\n{self.text()[-3000:]}")
            time.sleep(0.002)
        return time.monotonic()

    def phase(self) -> str:
        """Returns what the run is doing."""
        steps = self.steps()
        if not steps:
            return "start"
        if self.is_writing():
            return "checkpoint"
        if steps[-1] == STEPS:
            return "evaluation"
        return "first batch" if steps[-1] == steps[0] else "step"

    def kill(self, victim: str) -> str:
        """Kills and starts again, unless torchrun does; returns what was killed."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        mains = [child for child in below if self._is_rank(child)] if self.ranks > 1 else []
        mains = mains or [psutil.Process(self.process.pid)]
        main = mains[-1]
        workers = [child for child in main.children() if self.steps()]
        if victim == "worker" and workers:
            workers[0].kill()
            name = "a data worker"
        elif victim == "main" and main.pid != self.process.pid:
            main.kill()
            name = "a rank"
        elif victim == "main":
            main.kill()
            name = "the main process"
        else:
            name = "all"
            for process in (psutil.Process(self.process.pid), *below):
                self._kill(process)
        if self.ranks == 1 or name == "all":
            self.process.wait(DEADLINE_S)
            self.start()
        else:
            self.since, self.from_byte = time.monotonic(), self.log.stat().st_size
        return name

    def _is_rank(self, process: psutil.Process) -> bool:
        try:
            return process.ppid() == self.process.pid and "RANK" in process.environ()
        except psutil.Error:
            return False

    def _kill(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()

    def finish(self) -> None:
        """Waits for the end of the run.

        Raises:
            RuntimeError: it ended with an error.
        """
        if self.process.wait(DEADLINE_S):
            raise RuntimeError(f"the run failed; the end of {self.log}:\n{self.text()[-3000:]}")

    def curves(self) -> dict[tuple[str, int], list[float]]:
        """Returns what TensorBoard shows of losses and gradient norms, by tag and step."""
        events = EventAccumulator(str(self.folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        found: dict[tuple[str, int], list[float]] = {}
        for tag in events.Tags()["scalars"]:
            if tag.startswith(("loss/", "gradient_norm")):
                for event in events.Scalars(tag):
                    found.setdefault((tag, event.step), []).append(event.value)
        return found

    def weights(self) -> str:
        """Returns a digest of all bits of the weights; the file's header lists shared ones in an order of chance."""
        digest = hashlib.sha256()
        for name, value in sorted(load_file(self.folder / "model" / "model.safetensors").items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        return digest.hexdigest()


def timed_run(run: Run) -> dict[str, float]:
    """Watches a run that is not killed to its end; returns the seconds that each kind of moment takes."""
    started = run.wait(lambda: bool(run.steps()), "the first batch")
    first = run.wait(lambda: run.steps()[-1] > 0, "the first step")
    last = run.wait(lambda: run.steps()[-1] == STEPS, "the last step")
    start_s, step_s = started - run.since, (last - first) / STEPS
    run.finish()
    evaluation_s = time.monotonic() - last
    return {"start": start_s, "first batch": first - started, "step": step_s, "checkpoint": WRITING_S,
            "evaluation": evaluation_s}  # fmt: skip


def wait_for(run: Run, moment: Moment, seconds: dict[str, float]) -> None:
    """Waits for a moment; at the end of training, for whatever is left."""

    def reached() -> bool:
        steps = run.steps()
        if moment.kind == "start" or not steps:
            return moment.kind == "start"
        ahead = steps[-1] - steps[0]
        kinds = {"first batch": True, "step": ahead > moment.steps, "checkpoint": ahead > 0 and run.is_writing()}
        return steps[-1] == STEPS or kinds.get(moment.kind, False)

    run.wait(reached, moment.kind)
    time.sleep(moment.share * seconds[moment.kind])


def kill_often(run: Run, moments: list[Moment], seconds: dict[str, float]) -> list[tuple[str, str, int | None, int]]:
    """Kills a run at all moments and lets it end; returns (phase, victim, step reached, place in the log) of each."""
    kills = []
    for moment in moments:
        wait_for(run, moment, seconds)
        if run.process.poll() is not None:
            raise RuntimeError(f"the run ended before kill {len(kills) + 1}: {run.text()[-3000:]}")
        phase, steps, place = run.phase(), run.steps(), run.log.stat().st_size
        victim = run.kill(moment.victim)
        kills.append((phase, victim, steps[-1] if steps else None, place))
        print(".", end="", file=sys.stderr, flush=True)
    run.finish()
    return kills


def print_kills(run: Run, kills: list[tuple[str, str, int | None, int]]) -> None:
    """Prints the table."""
    print("| kill | while | of | step reached | resumed from | steps lost |\n|---|---|---|---|---|---|")
    for number, (phase, victim, reached, place) in enumerate(kills, 1):
        line = re.search(r"precision: [^\r\n]*", run.text(place))[0]
        found = re.search(r"resuming at step (\d+)", line)
        resumed = int(found[1]) if found else 0
        lost = "-" if reached is None else reached - resumed
        print(f"| {number} | {phase} | {victim} | {'-' if reached is None else reached} | {resumed} | {lost} |")


def differences(whole: Run, killed: Run) -> list[str]:
    """Returns what is not equal; nothing, when all is well."""
    expected, found = whole.curves(), killed.curves()
    tags = {tag for tag, _ in expected}
    wrong = [f"{len(tags)} curves have no loss of every modality"] if len(tags) < 7 else []
    for tag in sorted(tags):
        for step in range(1, STEPS + 1):
            own = found.get((tag, step), [])
            if len(expected.get((tag, step), [])) != 1 or own != expected[tag, step]:
                wrong.append(f"{tag} of step {step}: {expected.get((tag, step))} whole, {own} killed")
    if whole.weights() != killed.weights():
        wrong.append("the weights differ")
    return wrong


def main() -> None:
    """Trains once without and once with kills, and compares."""
    count, ranks, seed = (
        int(value) for value in (*sys.argv[1:], *("20", "1", str(secrets.randbits(32)))[len(sys.argv) - 1 :])
    )
    print_about()
    print(f"{count} kills, {ranks} process(es), seed {seed}\n", flush=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    whole = Run(folder / "whole", ranks)
    seconds = timed_run(whole)
    print(", ".join(f"{kind} {value:.2f} s" for kind, value in seconds.items()), end="\n\n", flush=True)
    killed = Run(folder / "killed", ranks)
    print_kills(killed, kill_often(killed, drawn_moments(seed, count), seconds))
    wrong = differences(whole, killed)
    verdict = f"{len(wrong)} DIFFERENCES: " + "; ".join(wrong[:5]) if wrong else "equal to the bit"
    print(f"\n{STEPS} steps, {len(whole.curves())} losses and norms, weights {killed.weights()[:16]}: {verdict}")
    print(f"{time.monotonic() - began:.0f} s; {folder}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
