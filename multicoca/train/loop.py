"""The training loop: steps, log, checkpoints, evaluations, and an orderly end on a signal.

The loop knows batches and names, nothing of what they hold. Its only state is the model, the optimizers and the
step number; the same call after an interruption goes on where the last checkpoint stands.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps, training_batches
from multicoca.data.sample import Batch
from multicoca.distributed.collectives import broadcast_parameters, rank, sum_over_ranks, world_size
from multicoca.model.coca import CoCa
from multicoca.train.checkpoint import load_latest, save_checkpoint
from multicoca.train.metrics import PeakMemory, TrainingLog
from multicoca.train.optim import OptimConfig, build_optimizers, learning_rates
from multicoca.train.precision import choose_precision
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step


@dataclass(frozen=True)
class TrainConfig:
    """How long to train and how often to do what, in steps.

    Attributes:
        steps: optimizer steps of the run.
        cpu_processes: processes to start on a machine without GPUs; None for one per core.
        precision: "auto" (bf16 autocast where it is measured to be faster), "fp32" or "bf16".
        log_every: for scalars.
        checkpoint_every: for checkpoints; one is also written at the end and on a signal.
        evaluate_every: for the short evaluations in between; 0 for none.
    """

    steps: int = 1000
    cpu_processes: int | None = None
    precision: str = "auto"
    log_every: int = 10
    checkpoint_every: int = 500
    evaluate_every: int = 0


@dataclass(frozen=True)
class TrainOutcome:
    """How training ended.

    Attributes:
        steps: steps done in all.
        seconds: time they took, earlier runs included.
        signal_number: what ended it before its time, or None when it is finished.
        peak_memory_gib: of all processes and their workers, since this start.
    """

    steps: int
    seconds: float
    signal_number: int | None
    peak_memory_gib: float


class _StopSignal:
    """Notes SIGINT and SIGTERM; the second one of a kind has its usual effect."""

    def __enter__(self) -> _StopSignal:
        self.number: int | None = None
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, interrupted: object) -> None:
        del interrupted
        self.number = number
        signal.signal(number, self._previous[number])

    def __exit__(self, *error: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def seen_by_any(self, device: torch.device) -> int | None:
        """Returns the signal that any rank has got; all ranks get the same answer."""
        if world_size() == 1:
            return self.number
        total = sum_over_ranks(torch.tensor(float(self.number is not None), device=device))
        return (self.number or signal.SIGTERM) if total > 0 else None


def train(
    model: CoCa,
    steps: Steps,
    folder: Path,
    config: TrainConfig,
    optim: OptimConfig,
    loss: LossConfig,
    ledger: Ledger,
    broken_share: BrokenShare,
    num_workers: int = 0,
    evaluate: Callable[[int, SummaryWriter], None] | None = None,
) -> TrainOutcome:
    """Trains from the newest checkpoint in `folder`, or from the start, to the last step or a signal.

    Args:
        model: on its device.
        steps: the batches of each step.
        folder: the run's folder, for `checkpoints/` and `tensorboard/`.
        config: how long and how often.
        optim: the optimizer's settings.
        loss: the losses' weights.
        ledger: takes files that cannot be read.
        broken_share: stops the run when they are too many.
        num_workers: processes that read data.
        evaluate: called on rank 0 at evaluations with the step and the TensorBoard writer.
    """
    device = next(model.parameters()).device
    broadcast_parameters(model)
    optimizers = build_optimizers(model, optim)
    first, earlier_s = load_latest(folder / "checkpoints", model, optimizers)
    autocast, reason = choose_precision(config.precision, device, model.config.width)
    log = TrainingLog(folder / "tensorboard", first, config.steps, visible=rank() == 0)
    log.say(f"precision: {reason}" + (f"; resuming at step {first}" if first else ""))
    memory, started, done, stopped = PeakMemory(), time.perf_counter(), first, None
    model.train()
    with _StopSignal() as stop:
        for step, own in enumerate(training_batches(steps, first, config.steps, num_workers), start=first):
            losses = accumulate_gradients(model, own, loss, autocast)
            rates = learning_rates(step, config.steps, optim)
            norm = optimizer_step(model, optimizers, rates, optim.clip_norm)
            done = step + 1
            _note_problems(own, ledger, broken_share)
            log.count(sum(len(batch.keys) for batch in own) * world_size())
            if done % config.log_every == 0 or done == config.steps:
                _write_scalars(log, done, model, memory, {**losses, "learning_rate": rates[0], "gradient_norm": norm})
            stopped = stop.seen_by_any(device)
            if stopped or done % config.checkpoint_every == 0 or done == config.steps:
                seconds = earlier_s + time.perf_counter() - started
                save_checkpoint(folder / "checkpoints", done, seconds, model, optimizers)
            if stopped:
                log.say(f"stopped by signal {stopped}; step {done} is saved, the same command goes on")
                break
            if evaluate and config.evaluate_every and done % config.evaluate_every == 0 and done < config.steps:
                if rank() == 0:
                    model.eval()
                    evaluate(done, log.writer)
                    model.train()
                log.pause()
    log.close()
    peak = sum_over_ranks(torch.tensor(memory.sample(), device=device))
    ended_early = stopped if done < config.steps else None
    return TrainOutcome(done, earlier_s + time.perf_counter() - started, ended_early, float(peak))


def _note_problems(batches: Sequence[Batch], ledger: Ledger, broken_share: BrokenShare) -> None:
    for batch in batches:
        ledger.add(batch.problems)
        broken_share.add(batch.modality, (problem.key for problem in batch.problems))


def _write_scalars(
    log: TrainingLog, done: int, model: CoCa, memory: PeakMemory, scalars: dict[str, float | torch.Tensor]
) -> None:
    """Writes a step's scalars with temperatures and memory; all ranks call it together."""
    device = next(model.parameters()).device
    temperatures = {f"temperature/{name}": 1 / head.logit_scale().item() for name, head in model.heads.items()}
    peak = sum_over_ranks(torch.tensor(memory.sample(), device=device))
    values = {tag: float(value) for tag, value in scalars.items()}
    log.write(done, {**values, **temperatures, "memory_gib": float(peak)})
