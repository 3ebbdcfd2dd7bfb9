"""The training loop: steps, log, checkpoints, evaluations, and an orderly end on a signal.

The loop knows batches and names, nothing of what they hold. Its only state is the model, the optimizers and the
step number; the same call after an interruption resumes from the last checkpoint.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.tensorboard import SummaryWriter

from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps, training_batches
from multicoca.data.sample import Batch, Problem
from multicoca.distributed.collectives import rank, rank_0_first, sum_over_ranks, world_size
from multicoca.distributed.heartbeat import Heartbeat
from multicoca.distributed.parallelize import Engine, ParallelConfig, parallelize
from multicoca.distributed.setup import naming_lost_ranks
from multicoca.modality import Processor
from multicoca.model.coca import CoCa
from multicoca.train.checkpoint import Checkpoints
from multicoca.train.metrics import PeakMemory, TrainingLog
from multicoca.train.optim import (
    PRECISIONS,
    TUNING,
    Average,
    OptimConfig,
    Optimizers,
    build_optimizers,
    learning_rates,
    set_tuning,
)
from multicoca.train.precision import deterministic, kept_muon_precision, kept_precision
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step
from multicoca.train.stopping import StopSignal


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on what, and how often to do what, in steps.

    Attributes:
        steps: optimizer steps of the run.
        cpu_processes: processes to start on a machine without GPUs; None for one per core.
        precision: "auto" (bf16 autocast where it is measured to be faster), "fp32" or "bf16".
        tuning: what is trained: "all", "poolers", "frozen_encoder", "last_blocks", "frozen_then_all" or "new".
        last_blocks: of each encoder, that are trained in the mode of that name.
        frozen_steps: at the start, with frozen encoders, in the mode "frozen_then_all".
        max_bad_steps: steps in a row without a finite loss and gradient after which the run stops; each is left out.
        log_every: for scalars.
        checkpoint_every: for checkpoints; one is also written at the end and on a signal.
        keep_last: checkpoints that stay.
        keep_every: checkpoints whose step is a multiple of it stay, too; 0 for none.
        evaluate_every: for the short evaluations in between; 0 for none.
        deterministic: torch takes kernels whose results do not differ from run to run, which may be slower on GPUs; an
            operation that has none stops the run.
        profile_from: step after which torch's profiler watches rank 0; None for never.
        profile_steps: steps that it watches; `profile/` then holds a trace for ui.perfetto.dev.
    """

    steps: int = 1000
    cpu_processes: int | None = None
    precision: str = "auto"
    tuning: str = "all"
    last_blocks: int = 1
    frozen_steps: int = 0
    max_bad_steps: int = 20
    log_every: int = 10
    checkpoint_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    evaluate_every: int = 0
    deterministic: bool = False
    profile_from: int | None = None
    profile_steps: int = 3

    def __post_init__(self) -> None:
        least = {"steps": 1, "max_bad_steps": 1, "log_every": 1, "checkpoint_every": 1, "keep_last": 1, "keep_every": 0,
                 "evaluate_every": 0, "frozen_steps": 0, "profile_steps": 1, "last_blocks": 1,
                 "cpu_processes": 1}  # fmt: skip
        for key, smallest in least.items():
            if getattr(self, key) is not None and getattr(self, key) < smallest:
                raise ValueError(f"train.{key} is {getattr(self, key)}; expected at least {smallest}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"train.precision is '{self.precision}'; choose one of {', '.join(PRECISIONS)}")
        if self.tuning not in TUNING:
            raise ValueError(f"train.tuning is '{self.tuning}'; choose one of {', '.join(TUNING)}")
        if (self.tuning == "frozen_then_all") != (self.frozen_steps > 0):
            raise ValueError(
                f"train.tuning is '{self.tuning}' and train.frozen_steps {self.frozen_steps}; steps with frozen "
                "encoders go with frozen_then_all, and it with them"
            )


@dataclass(frozen=True)
class TrainOutcome:
    """How training ended.

    Attributes:
        steps: steps done in all.
        seconds: time they took, earlier runs included.
        signal_number: what ended it before its time, or None when it is finished.
        peak_memory_gib: of all processes and their workers, since this start.
        weights: whole and averaged, on rank 0, where the model's own are shards or not the average; None otherwise.
    """

    steps: int
    seconds: float
    signal_number: int | None
    peak_memory_gib: float
    weights: dict[str, Tensor] | None = None


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
    evaluate: Callable[[int, SummaryWriter, dict[str, Tensor] | None], None] | None = None,
    parallel: ParallelConfig | None = None,
    new: Collection[str] = (),
    idle: Collection[str] = (),
    shorter: str = "",
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
        evaluate: called on rank 0 at evaluations with the step, the TensorBoard writer and what `TrainOutcome.weights`
            would be.
        parallel: how ranks share the model; each has a copy by default.
        new: names of the parameters that the model of `start_from` did not have.
        idle: modalities without training data, which stay as they are.
        shorter: what a user who cannot wait may do instead; said with the expected time where that is long.

    Raises:
        ValueError: settings do not fit, checkpoints cannot be used or written, or too many steps in a row are bad.
    """
    device = next(model.parameters()).device
    set_tuning(model, config.tuning, config.last_blocks, new, idle)
    autocast, reason = kept_precision(config.precision, device, model.config.width, folder)
    uses_all = uses_all_parameters(len(model.encoders) - len(idle), loss, config)
    parallel = parallel or ParallelConfig()
    engine = parallelize(model, parallel, device, autocast, uses_all)
    heartbeat = Heartbeat(parallel.timeout_s)
    muon_dtype, muon_reason = torch.bfloat16, ""
    if optim.muon_lr is not None:
        muon_dtype, muon_reason = kept_muon_precision(optim.muon_precision, device, model.config.width, folder)
    optimizers = build_optimizers(model, optim, muon_dtype, new)
    average = None if optim.ema_decay is None else Average(model, optim.ema_decay)
    checkpoints = Checkpoints(folder / "checkpoints", model, optimizers, average, config.keep_last, config.keep_every)
    first, earlier_s, torn = checkpoints.load_latest()
    log = TrainingLog(folder, first, config.steps, world_size(), visible=rank() == 0, shorter=shorter)
    for message in torn:
        log.say(message)
    muon = f"; Muon: {muon_reason}" if muon_reason else ""
    log.say(f"precision: {reason}{muon}" + (f"; resuming at step {first}" if first else ""))
    memory, started, done, stopped, bad, left_out = PeakMemory(), time.perf_counter(), first, None, 0, 0
    reports: deque[_Report] = deque()

    def seconds() -> float:
        return earlier_s + time.perf_counter() - started

    model.train()
    profiling, kernels = _profiler(config, first, folder), deterministic(config.deterministic)
    with StopSignal() as stop, naming_lost_ranks(), checkpoints.finishing(), kernels, profiling as profiler:
        for step, own in enumerate(log.waiting(training_batches(steps, first, config.steps, num_workers)), first):
            model.freeze_encoders(config.tuning == "frozen_then_all" and step < config.frozen_steps)
            _count_flops(engine, own, loss, autocast, steps.processors, log)
            losses = accumulate_gradients(engine, own, loss, autocast, (steps.seed, step), steps.processors)
            rates = learning_rates(step, config.steps, optim, optimizers)
            report = _update(model, losses, optimizers, rates, optim.clip_norm, average, step)
            done = step + 1
            checkpoints.settle()
            problems = [problem for batch in own for problem in batch.problems]
            stopped, problems = heartbeat.exchange(stop.number, problems)
            _note_problems(problems, ledger, broken_share)
            log.count(own)
            is_logged = done % config.log_every == 0 or done == config.steps
            reports.append(report)
            # a GPU is a step behind, and waited for where the scalars are needed at once
            while reports and (reports[0].step < step or is_logged or stopped or done % config.checkpoint_every == 0):
                before = reports.popleft()
                scalars = before.read()
                bad = 0 if all(map(math.isfinite, scalars.values())) else bad + 1
                if bad:
                    left_out += 1
                    _warn_bad(before.step, bad, scalars, config, log)
            if is_logged:
                more = {"learning_rate": rates[0], "bad_steps": left_out, "checkpoint_pause_s": checkpoints.pause_s}
                checkpoints.pause_s = 0.0
                _write_scalars(log, done, engine, memory, {**scalars, **more})
            for line in steps.epochs_ended(step):
                log.say(line)
            if profiler is not None:
                profiler.step()
            # while steps are left out, the checkpoints from before must stay
            if stopped or done == config.steps or (done % config.checkpoint_every == 0 and not bad):
                log.flush()  # after a kill, the curves have every step that the checkpoint has
                checkpoints.save(done, seconds())
            if stopped:
                break
            if evaluate and config.evaluate_every and done % config.evaluate_every == 0 and done < config.steps:
                weights = _whole_weights(engine, average)
                with rank_0_first():
                    if rank() == 0:
                        evaluate(done, log.writer, weights)
                log.pause()
        with rank_0_first():  # who may write for longer than ranks wait for each other
            checkpoints.finish()
        if stopped:
            log.say(f"stopped by signal {stopped}; step {done} is saved, the same command goes on")
        peak = sum_over_ranks(torch.tensor(memory.sample(), device=device))
        ended_early = stopped if done < config.steps else None
        weights = _whole_weights(engine, average) if ended_early is None else None
    log.close()
    return TrainOutcome(done, seconds(), ended_early, float(peak), weights)


def uses_all_parameters(num_modalities: int, loss: LossConfig, config: TrainConfig) -> bool:
    """Whether a backward pass of any micro-batch reaches all trained parameters."""
    both = loss.contrastive_weight > 0 and loss.captioning_weight > 0
    return num_modalities == 1 and both and config.tuning != "frozen_then_all"


def _check_reached(model: CoCa) -> None:
    """Checks that the first step has reached all trained parameters.

    Raises:
        ValueError: it has not, which the contract of a modality rules out.
    """
    left_out = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    if left_out:
        raise ValueError(
            f"no gradient reaches {', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}; freeze what an "
            "encoder does not use (requires_grad_(False)) or leave it out; multicoca.testing.check_modality finds it"
        )


class _Report:
    """Scalars of a step on their way from the device."""

    def __init__(self, step: int, scalars: dict[str, Tensor]):
        self.step, self._tags = step, list(scalars)
        values = torch.stack([value.detach().double() for value in scalars.values()])
        self._there = torch.cuda.Event() if values.is_cuda else None
        self._values = values.to("cpu", non_blocking=True)  # to pinned memory, and without a wait
        if self._there is not None:
            self._there.record()

    def read(self) -> dict[str, float]:
        """Returns the scalars, when they are there."""
        if self._there is not None:
            self._there.synchronize()
        return dict(zip(self._tags, self._values.tolist(), strict=True))


def _update(
    model: CoCa,
    losses: dict[str, Tensor],
    optimizers: Optimizers,
    rates: Sequence[float],
    clip_norm: float,
    average: Average | None,
    step: int,
) -> _Report:
    """Updates parameters and average unless a loss or gradient is not finite; reports losses and gradients' norm."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    usable = torch.stack(list(losses.values())).isfinite().all()
    norm, used = optimizer_step(parameters, optimizers, rates, clip_norm, usable)
    for head in model.heads.values():
        head.limit_scale()
    if average is not None:
        average.update(step, used)
    return _Report(step, {**losses, "gradient_norm": norm})


def _whole_weights(engine: Engine, average: Average | None) -> dict[str, Tensor] | None:
    """Returns what the finished model holds, on rank 0; None where the trained model itself holds it."""
    if average is None and not engine.is_sharded:
        return None
    with _in_place(average):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: value.clone() for name, value in get_model_state_dict(engine.model, options=options).items()}


def _in_place(average: Average | None) -> AbstractContextManager[None]:
    return nullcontext() if average is None else average.in_place()


def _count_flops(
    engine: Engine,
    own: Sequence[Batch],
    loss: LossConfig,
    autocast: torch.dtype | None,
    processors: Mapping[str, Processor],
    log: TrainingLog,
) -> None:
    """Counts the floating-point work of a sample of each modality that comes for the first time, by one more pass.

    It runs on two samples, eagerly, which needs more memory than compiled blocks. What activation checkpointing
    computes again is counted, too; what the contrastive loss adds for a larger batch, below a hundredth, is not.
    """
    for batch in {batch.modality: batch.first(2) for batch in reversed(own)}.values():
        if batch.modality not in log.flops:
            with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
                accumulate_gradients(engine, [batch], loss, autocast, processors=processors)
            if engine.uses_all:
                _check_reached(engine.model)
            engine.model.zero_grad(set_to_none=True)
            log.flops[batch.modality] = counter.get_total_flops() / len(batch.ids)


def _warn_bad(step: int, bad: int, scalars: dict[str, float], config: TrainConfig, log: TrainingLog) -> None:
    """Says that a step is left out.

    Raises:
        ValueError: there were too many in a row.
    """
    wrong = ", ".join(f"{tag} is {value}" for tag, value in scalars.items() if not math.isfinite(value))
    log.say(f"step {step} is left out: {wrong} ({bad} in a row)")
    if bad >= config.max_bad_steps:
        raise ValueError(
            f"{bad} steps in a row had no finite loss and gradient (step {step}: {wrong}); the newest checkpoint is "
            "from before them. Go on from it with a lower optim.lr, or train.precision=fp32, and accept_changes=true"
        )


def _note_problems(problems: Sequence[Problem], ledger: Ledger, broken_share: BrokenShare) -> None:
    """Names what any rank could not read. All ranks count all of it, so that they stop together."""
    if rank() == 0:
        ledger.add(problems)
    for modality in dict.fromkeys(problem.modality for problem in problems):
        broken_share.add(modality, (problem.key for problem in problems if problem.modality == modality))


def _write_scalars(log: TrainingLog, done: int, engine: Engine, memory: PeakMemory, scalars: dict[str, float]) -> None:
    """Writes a step's scalars with temperatures and memory; all ranks call it together."""
    device = next(engine.model.parameters()).device
    temperatures = {}
    for name, head in engine.model.heads.items():
        scale = head.logit_scale().detach()
        scale = scale.full_tensor() if hasattr(scale, "full_tensor") else scale
        temperatures[f"temperature/{name}"] = float(1 / scale.double())
    peak = sum_over_ranks(torch.tensor(memory.sample(), device=device))
    values = {**scalars, **temperatures, "memory_gib": float(peak)}
    if device.type == "cuda":
        values["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    log.write(done, values)


def _profiler(config: TrainConfig, first: int, folder: Path) -> AbstractContextManager[torch.profiler.profile | None]:
    """Returns the profiler of the configured window on rank 0."""
    if config.profile_from is None or rank() != 0 or config.profile_from < first:
        return nullcontext()
    skipped = config.profile_from - first
    window = torch.profiler.schedule(skip_first=max(skipped - 1, 0), wait=0, warmup=min(skipped, 1),
                                     active=config.profile_steps, repeat=1)  # fmt: skip
    write = torch.profiler.tensorboard_trace_handler(str(folder / "profile"))
    return torch.profiler.profile(schedule=window, on_trace_ready=write, profile_memory=True)
