"""What a run says about itself: a progress bar, TensorBoard scalars and its peak memory. Rank 0 only."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class TrainingLog:
    """Progress bar and TensorBoard scalars of a run.

    Args:
        folder: for the TensorBoard files.
        first: the step at which this process starts.
        num_steps: steps of the whole run.
        visible: whether this process writes at all.
    """

    def __init__(self, folder: Path, first: int, num_steps: int, visible: bool):
        self.writer = SummaryWriter(str(folder), purge_step=first or None) if visible else None
        self.bar = tqdm(
            total=num_steps, initial=first, desc="training", unit="step", disable=not visible, mininterval=1.0
        )
        self._samples, self._since = 0, time.perf_counter()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self.bar.disable:
            self.bar.write(text)

    def count(self, samples: int) -> None:
        """Notes a finished step and its samples over all ranks."""
        self._samples += samples
        self.bar.update()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars of a step, with the throughput since the last call."""
        elapsed = time.perf_counter() - self._since
        scalars = {**scalars, "samples_per_s": self._samples / max(elapsed, 1e-9)}
        self._samples, self._since = 0, time.perf_counter()
        if self.writer is not None:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, step)
        totals: dict[str, float] = {}
        for tag, value in scalars.items():
            if tag.startswith("loss/"):
                modality = tag.rpartition("/")[2]
                totals[modality] = totals.get(modality, 0.0) + value
        shown = {modality: f"{value:.2f}" for modality, value in totals.items()}
        self.bar.set_postfix({**shown, "samples/s": f"{scalars['samples_per_s']:.0f}"})

    def pause(self) -> None:
        """Leaves out of the throughput what happened since the last call of `write`."""
        self._samples, self._since = 0, time.perf_counter()

    def close(self) -> None:
        """Ends the bar and writes what is pending."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


class PeakMemory:
    """The largest memory of this process and its workers, in GiB, as far as it was sampled."""

    def __init__(self) -> None:
        self._peak = 0

    def sample(self) -> float:
        """Looks at the memory now and returns the peak so far, in GiB.

        Shared pages count once where the system tells proportional shares.
        """
        total = 0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            try:
                info = process.memory_full_info() if sys.platform == "linux" else process.memory_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += info.pss if sys.platform == "linux" else info.rss
        self._peak = max(self._peak, total)
        return self._peak / 2**30
