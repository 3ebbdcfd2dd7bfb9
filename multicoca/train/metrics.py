"""What a run says about itself: progress, scalars for TensorBoard and as JSON lines, floating-point work and memory.
Rank 0 only.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from multicoca.data.sample import Batch
from multicoca.terminal import printable, progress
from multicoca.train.scalars import ScalarWriter

T = TypeVar("T")

# dense bf16 floating-point operations per second, from NVIDIA's data sheets; the first whose words all occur counts
_PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
          "L40S": 362e12, "A10": 125e12}  # fmt: skip

_WARM_STEPS, _PACED_STEPS = 3, 10  # the first ones, which compile and fill caches; and those that the pace is taken of
_LONG_S = 600.0


@dataclass
class _Seen:
    """What passed since the last line of the log."""

    samples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    waited_s: float = 0.0
    since: float = field(default_factory=time.perf_counter)


class TrainingLog:
    """Progress and scalars of a run.

    Args:
        folder: of the run, for `tensorboard/` and `scalars.jsonl`.
        first: the step at which this process starts.
        num_steps: steps of the whole run.
        ranks: processes of the run; what this one sees stands for all.
        visible: whether this process writes at all.
        shorter: what a user who cannot wait may do instead; said with the expected time where that is long.
    """

    def __init__(self, folder: Path, first: int, num_steps: int, ranks: int, visible: bool, shorter: str = ""):
        self.writer = ScalarWriter(folder, first) if visible else None
        self.bar = progress(total=num_steps, initial=first, desc="training", unit="step", disable=not visible)
        self.ranks = ranks
        self.flops: dict[str, float] = {}
        self._peak = peak_flops()
        self._seen = _Seen()
        self._shorter, self._counted, self._paced_since = shorter, 0, 0.0

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self.bar.disable:
            self.bar.write(printable(text))

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches and notes how long they made the run wait."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                own = next(iterator)
            except StopIteration:
                return
            self._seen.waited_s += time.perf_counter() - start
            yield own

    def count(self, batches: Sequence[Batch]) -> None:
        """Notes a finished step and its batches on this rank."""
        for batch in batches:
            for counts, own in (
                (self._seen.samples, len(batch.ids)),
                (self._seen.tokens, int(batch.lengths.sum())),
                (self._seen.slots, batch.ids.numel()),
            ):
                counts[batch.modality] = counts.get(batch.modality, 0) + own
        self.bar.update()
        self._counted += 1
        if self._counted == _WARM_STEPS:
            self._paced_since = time.perf_counter()
        elif self._counted == _WARM_STEPS + _PACED_STEPS:
            self._say_what_to_expect((time.perf_counter() - self._paced_since) / _PACED_STEPS)

    def _say_what_to_expect(self, step_s: float) -> None:
        """Says how long the rest takes on this machine, by the pace of the first steps."""
        steps = self.bar.total - self.bar.n
        if steps < _PACED_STEPS:
            return
        expected_s = steps * step_s
        shorter = f"; {self._shorter}" if self._shorter and expected_s > _LONG_S else ""
        time_left = f"{expected_s / 60:.0f} min" if expected_s > 90 else f"{expected_s:.0f} s"
        self.say(f"{step_s:.2g} s a step here: the other {steps} steps will take about {time_left}{shorter}")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars of a step, with the throughput since the last call."""
        throughput = self._throughput()
        if self.writer is not None:
            for tag, value in {**scalars, **throughput}.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.end_line()
        totals: dict[str, float] = {}
        for tag, value in scalars.items():
            if tag.startswith("loss/"):
                modality = tag.rpartition("/")[2]
                totals[modality] = totals.get(modality, 0.0) + value
        shown = {modality: f"{value:.2f}" for modality, value in totals.items()}
        shown["samples/s"] = f"{throughput['samples_per_s']:.0f}"
        if "mfu" in throughput:
            shown["MFU"] = f"{throughput['mfu']:.0%}"
        if throughput["data_wait_share"] > 0.1:
            shown["waiting for data"] = f"{throughput['data_wait_share']:.0%}"
        self.bar.set_postfix(shown, refresh=False)

    def pause(self) -> None:
        """Leaves out of the throughput what happened since the last call of `write`, such as an evaluation, and ends
        the line of its scalars."""
        self._seen = _Seen()
        if self.writer is not None:
            self.writer.end_line()

    def flush(self) -> None:
        """Writes what is pending."""
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Ends the bar and writes what is pending."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def _throughput(self) -> dict[str, float]:
        """Returns what passed since the last call, by tag."""
        seen, self._seen = self._seen, _Seen()
        elapsed = max(time.perf_counter() - seen.since, 1e-9)
        found = {
            "samples_per_s": sum(seen.samples.values()) * self.ranks / elapsed,
            "data_wait_share": seen.waited_s / elapsed,
        }
        for modality, samples in seen.samples.items():
            found[f"samples_per_s/{modality}"] = samples * self.ranks / elapsed
            found[f"text_tokens_per_s/{modality}"] = seen.tokens[modality] * self.ranks / elapsed
            found[f"text_padding_share/{modality}"] = 1 - seen.tokens[modality] / max(seen.slots[modality], 1)
        if self.flops:
            per_rank = sum(self.flops.get(name, 0.0) * samples for name, samples in seen.samples.items()) / elapsed
            found["tflops_per_rank"] = per_rank / 1e12
            if self._peak is not None:
                found["mfu"] = per_rank / self._peak
        return found


def peak_flops() -> float | None:
    """Returns the dense bf16 peak of this rank's GPU in operations per second; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    words = set(re.findall(r"\w+", torch.cuda.get_device_name()))
    return next((peak for name, peak in _PEAKS.items() if words.issuperset(name.split())), None)


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
