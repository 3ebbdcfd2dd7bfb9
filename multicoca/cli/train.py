"""`multicoca train`: data, training, evaluation and report in one command; the same command resumes.

A run's folder holds config.yaml, precision.txt, checkpoints/, tensorboard/, scalars.jsonl, ledger.jsonl, and at the end
model/, results.json, report.html.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from multicoca.build import build, build_processors
from multicoca.cli.cluster import is_launcher, queue_again, submit
from multicoca.cli.compose import compose_training, print_help
from multicoca.cli.results import log_answers, model_card, summary, write_run_report
from multicoca.cli.sweep import SWEEP, run_sweep, sweep_runs
from multicoca.config import Config, to_yaml
from multicoca.convert.clip_tokenizer import clip_tokenizer
from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps, usable_workers
from multicoca.data.sample import Item, UnfilledBatchError
from multicoca.data.shared_memory import bytes_of
from multicoca.data.sources import Listing
from multicoca.data.splits import evaluation_splits, left_aside, training_items
from multicoca.distributed.collectives import gather_objects, rank, rank_0_first, world_size
from multicoca.distributed.launch import (
    available_cores,
    has_failed,
    is_first,
    is_launched,
    local_processes,
    run_processes,
)
from multicoca.distributed.setup import distributed, has_lost_rank, own_cores, run_as_rank, training_device
from multicoca.eval.evaluator import Answers
from multicoca.eval.suite import evaluate, probe
from multicoca.files import write_text
from multicoca.isolated import set_decode_timeout
from multicoca.modality import Processor
from multicoca.model.bundle import Bundle
from multicoca.model.spec import ModelSpec
from multicoca.runs.folder import TOKENIZER, RunFolder, opened_run
from multicoca.runs.model_folder import CARD, build_bundle, local_folder, read_spec, read_tokenizer
from multicoca.runs.save import save
from multicoca.runs.start_from import Start, spec_differences, start_from
from multicoca.terminal import printable
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.loop import TrainOutcome, train
from multicoca.train.metrics import PeakMemory
from multicoca.train.optim import TUNING
from multicoca.train.stopping import Stopped, stopping_at_once

HELP = """usage: multicoca train [--cfg job] [--multirun] [KEY=VALUE ...]

Trains one model on all configured modalities, evaluates it and writes runs/NAME/report.html.
Without arguments it trains on the built-in shapes world. On several GPUs:
torchrun --nproc-per-node 8 -m multicoca.cli.train [KEY=VALUE ...]

--cfg job prints the configuration of the run and trains nothing. --multirun (-m) trains every combination of values,
as in optim.lr=1e-3,3e-4 seed=0,1, one after the other in runs/NAME/COMBINATION.

Groups to choose from, for example experiment=shapes_long or modality=[image]:
"""

_SHOW = ("--cfg", "-c", "--cfg=job")  # as Hydra has it, with "job" as the next argument
_PRINTS_WITHIN_S = 5.0  # a rank that fails leaves the group first, then prints its error
_SHORTER = "experiment=shapes_quick is a first look in about two minutes"


def run_train(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return print_help("train_shapes", HELP)
    if any(argument in _SHOW for argument in arguments):
        overrides = [argument for argument in arguments if argument not in (*_SHOW, *SWEEP, "job")]
        if "hydra" in overrides or "all" in overrides:
            raise ValueError("--cfg shows the configuration of the run alone; give --cfg job")
        is_sweep = any(argument in SWEEP for argument in arguments)
        runs = [run for run, _ in sweep_runs(overrides)] if is_sweep else [overrides]
        print("---\n".join(to_yaml(compose_training(run)) for run in runs), end="")
        return 0
    if any(argument in SWEEP for argument in arguments):
        return run_sweep(arguments)
    if any(is_launcher(argument) for argument in arguments):
        job = submit(arguments)
        print(f"job {job.job_id}; its output: {job.paths.stdout}")
        return 0
    try:
        with stopping_at_once():
            return _run(arguments)
    except Stopped as stop:
        if is_first() and not has_failed():  # else it was ended because of another rank
            print(f"multicoca train: {stop}; the same command goes on", file=sys.stderr, flush=True)
        queue_again(stop.number)
        return 128 + stop.number
    except RuntimeError as error:
        if has_lost_rank(error) and has_failed(_PRINTS_WITHIN_S):
            return 2  # the other rank has printed why it ended
        raise


def _run(arguments: list[str]) -> int:
    """Trains and evaluates; returns the exit status.

    Raises:
        Stopped: by a signal.
    """
    config = compose_training(arguments)
    device = training_device()
    if device.type == "cpu" and not is_launched():
        count = local_processes(config.train.cpu_processes, config.data.common_size())
        if count > 1:
            return run_processes(["-m", "multicoca.cli.train", *arguments], count)
    folder = Path(config.output) / config.name
    with ExitStack() as held, distributed(device, config.parallel.timeout_s):
        with rank_0_first():
            run_folder = held.enter_context(opened_run(folder, config)) if is_first() else None
        run = _train_run(config, folder, run_folder, device)
        if run.outcome.signal_number is None:
            with rank_0_first():  # torchrun's agents would not wait long for a machine that alone still works
                if run.is_first:
                    torch.set_num_threads(available_cores())
                    _finish(run, "multicoca train " + " ".join(arguments))
    if run.outcome.signal_number is not None:
        raise Stopped(run.outcome.signal_number)
    return 0


@dataclass(frozen=True)
class _Run:
    """What training leaves to the evaluation."""

    folder: Path
    config: Config
    bundle: Bundle
    listing: Listing
    ledger: Ledger
    data_s: float
    outcome: TrainOutcome
    is_first: bool


def _train_run(config: Config, folder: Path, run_folder: RunFolder | None, device: torch.device) -> _Run:
    """Builds everything, then writes, then trains. `run_folder` is that of rank 0."""
    started = time.perf_counter()
    set_decode_timeout(config.data.decode_timeout_s)
    processors = build_processors(config.modalities)
    listing = list_items(config, processors)
    model_folder = None if config.start_from is None else local_folder(config.start_from)
    before = None if model_folder is None else read_spec(model_folder)
    idle = [] if before is None else [name for name in before.modalities if not listing.of("train").get(name)]
    config = config.limited_to([name for name in config.modalities if name not in listing.skipped or name in idle])
    processors = {name: processors[name] for name in config.modalities}
    items = training_items(listing, [name for name in processors if name not in idle])
    if not items:
        raise ValueError(f"there are no training items for any of the modalities {', '.join(processors)}")
    tokenizer = _tokenizer(config, folder, run_folder, model_folder, listing)
    bundle = build_bundle(config.spec, tokenizer)
    start = Start() if before is None else start_from(bundle.network, model_folder, before, config.spec)
    bundle.network.to(device)
    with rank_0_first():
        if run_folder is not None:
            run_folder.begin(tokenizer.to_json(), items)
    ledger = Ledger(folder / "ledger.jsonl")
    problems = ledger.add(listing.problems) if rank() == 0 else []
    data_s = time.perf_counter() - started
    if rank() == 0:
        _announce(folder, bundle, listing, device, len(problems))
        if before is not None:
            _announce_start(config, before, start, idle)
    outcome = _train(config, folder, bundle, listing, items, ledger, start, idle)
    return _Run(folder, config, bundle, listing, ledger, data_s, outcome, rank() == 0)


def _announce_start(config: Config, before: ModelSpec, start: Start, idle: Sequence[str]) -> None:
    """Says what comes from the model that training starts from, what is new, frozen, resized and set otherwise."""
    parts = sorted({".".join(name.split(".")[:2]) for name in start.new})
    rate = config.optim.lr if config.optim.new_lr is None else config.optim.new_lr
    print(f"weights from {config.start_from}; learning rate {config.optim.lr:g}, {rate:g} for what is new")
    print(f"new: {', '.join(parts) or 'nothing'}; trained: {TUNING[config.train.tuning]}")
    if idle:
        print(f"frozen, since there is no data for it: {', '.join(idle)}; saved with the model all the same")
    if start.resized:
        print(f"resized: {', '.join(start.resized)}")
    for line in spec_differences(before, config.spec):
        print(f"set otherwise than in that model: {line}")
    lost = {"contrastive_weight": "retrieval and classification", "captioning_weight": "captions"}
    for key, ability in lost.items():
        if getattr(config.loss, key) == 0:
            print(
                f"warning: loss.{key} is 0. What only the other loss trains drifts away from {ability}: public weights "
                "that were tuned on captions alone fell from 63% to 0.8% on ImageNet. Keep a small weight, or freeze "
                "what both share (train.tuning)"
            )
    sys.stdout.flush()


def list_items(config: Config, processors: Mapping[str, Processor]) -> Listing:
    """Builds the configured source and lists its items; rank 0 first, since it may write files."""
    arguments = {} if config.data.root is None else {"root": config.data.root}
    if not config.data.source:
        raise ValueError("data.source is not set; choose a source, for example data=shapes or data=folder")
    source = build(config.data.source, "source", **arguments)
    with rank_0_first():
        return source.list_items(processors, config.seed)


def _tokenizer(
    config: Config, folder: Path, run_folder: RunFolder | None, model_folder: Path | None, listing: Listing
) -> TextTokenizer:
    """Reads the tokenizer of the model to start from, of an earlier start, or the configured one; or learns one."""
    length = config.model.context_length
    if model_folder is not None:
        return read_tokenizer(model_folder, config.spec)
    if config.text.tokenizer == "clip":
        return clip_tokenizer(length)
    if config.text.tokenizer is not None:
        return TextTokenizer.load(Path(config.text.tokenizer), length, config.text.clean)
    learned = []
    with rank_0_first():
        if run_folder is not None and run_folder.is_resumed and (folder / TOKENIZER).is_file():
            learned = [(folder / TOKENIZER).read_text(encoding="utf-8")]
        elif rank() == 0:
            texts = (text for items in listing.of("train").values() for item in items for text in item.texts)
            learned = [TextTokenizer.learn(texts, config.text.vocab_size, length).to_json()]
    (text,) = gather_objects(learned, training_device())
    return TextTokenizer.from_json(text, length, config.text.clean)


def _announce(folder: Path, bundle: Bundle, listing: Listing, device: torch.device, num_problems: int) -> None:
    parameters = sum(parameter.numel() for parameter in bundle.network.parameters())
    modalities = list(bundle.processors)
    listed = listing.with_captions("train")
    counts = ", ".join(f"{len(listed[name])} {name}" for name in modalities if listed.get(name))
    tests: dict[str, list[str]] = {}
    for modality, split in evaluation_splits(listing, modalities).items():
        tests.setdefault(split, []).append(f"{len(listing.of(split).get(modality, ()))} {modality}")
    shown = "; ".join(f"{split} items: {', '.join(own)}" for split, own in tests.items()) or "test items: none"
    print(f"run: {printable(folder)}; device: {device}, {world_size()} process(es), {torch.get_num_threads()} threads")
    print(f"model: {parameters / 1e6:.2f}M parameters; training items: {counts}; {shown}")
    for line in left_aside(listing, modalities):
        print(line)
    if num_problems:
        print(f"{num_problems} items cannot be used; {folder / 'ledger.jsonl'} names each with its reason")
    sys.stdout.flush()


def _train(
    config: Config,
    folder: Path,
    bundle: Bundle,
    listing: Listing,
    items: Mapping[str, Sequence[Item]],
    ledger: Ledger,
    start: Start,
    idle: Sequence[str],
) -> TrainOutcome:
    broken = BrokenShare(listing.listed.get("train", {}), config.data.max_broken_share, ledger.file)
    known = {(p.modality, p.key) for p in (*listing.problems, *ledger.problems) if p.split == "train"}
    processors = {name: bundle.processors[name] for name in items}
    for modality in processors:
        broken.add(modality, (key for name, key in known if name == modality))
    steps = Steps(
        items,
        processors,
        bundle.tokenizer,
        config.data.batch_size,
        config.seed,
        rank(),
        world_size(),
        config.data,
    )
    splits = evaluation_splits(listing, bundle.processors)
    probed = {
        name: listing.of(split)[name][: config.evaluation.probe_items]
        for name, split in splits.items()
        if name in listing.of(split)
    }

    def evaluate_now(step: int, writer: SummaryWriter, weights: dict[str, Tensor] | None) -> None:
        if weights is not None and not _fits_beside(weights, training_device()):
            print(f"evaluation after step {step} is left out: a second model does not fit on the GPU beside training")
            return
        usable = _usable(config, bundle, weights)
        usable.network.eval()
        scalars, answers = probe(usable, probed, config.evaluation)
        usable.network.train()
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)
        log_answers(writer, step, answers, bundle.processors)

    on_gpu = next(bundle.network.parameters()).device.type == "cuda"
    cores = own_cores()
    workers = usable_workers(config.data.workers, cores - 1 if on_gpu else 0)
    try:
        return train(
            bundle.network,
            steps,
            folder,
            config.train,
            config.optim,
            config.loss,
            ledger,
            broken,
            workers,
            evaluate_now,
            config.parallel,
            start.new,
            idle,
            _SHORTER if config.name == "shapes" else "",
        )
    except UnfilledBatchError as error:
        ledger.add(error.problems)
        raise


def _fits_beside(weights: Mapping[str, Tensor], device: torch.device) -> bool:
    """Whether a device has room for a second model, and for as much again to work with."""
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] >= 2 * bytes_of(weights)


def _usable(config: Config, bundle: Bundle, weights: dict[str, Tensor] | None) -> Bundle:
    """Returns a bundle that one process can use: the trained one, or a new one with whole or averaged weights."""
    if weights is None:
        return bundle
    network = build_bundle(config.spec, bundle.tokenizer).network
    network.load_state_dict(weights)
    return replace(bundle, network=network.to(training_device()))


def _finish(run: _Run, command: str) -> None:
    """Evaluates and writes the model, results.json and the report."""
    folder, config, bundle = run.folder, run.config, _usable(run.config, run.bundle, run.outcome.weights)
    bundle.network.eval()
    save(folder / "model", bundle, config, model_card(config, {}))  # first, for evaluation may fail
    started = time.perf_counter()
    results: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    if evaluation_splits(run.listing, bundle.processors):
        workers = usable_workers(config.data.workers, available_cores() - 1)
        results, answers, problems = evaluate(bundle, run.listing, config.evaluation, config.seed, workers)
        run.ledger.add(problems)
    seconds = {"data": run.data_s, "train": run.outcome.seconds, "evaluate": time.perf_counter() - started}
    peak = max(PeakMemory().sample(), run.outcome.peak_memory_gib)
    results |= {"seconds": seconds, "peak_memory_gib": peak, "broken_items": len(run.ledger)}
    write_text(folder / "model" / CARD, model_card(config, results))
    write_text(folder / "results.json", json.dumps(results, indent=1))
    write_run_report(folder, config, bundle, results, answers, command)
    print(summary(results))
    for name, path in (("report", "report.html"), ("model", "model")):
        print(f"{name + ':':<8}{printable((folder / path).resolve())}")


if __name__ == "__main__":
    from multicoca.cli.main import main

    run_as_rank(lambda: main(["train", *sys.argv[1:]]))
