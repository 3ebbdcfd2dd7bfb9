"""`multicoca train`: data, training, evaluation and report in one command; the same command resumes.

A run's folder holds config.yaml, precision.txt, checkpoints/, tensorboard/, scalars.jsonl, ledger.jsonl, and at the end
model/, results.json, report.html.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # by torchrun; it must be known before torch is loaded, see `multicoca.cli.main`
    os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from multicoca.api import CARD, build_bundle, local_folder, read_config, read_tokenizer, save, start_from
from multicoca.build import build, build_processors
from multicoca.cli.cluster import is_launcher, queue_again, submit
from multicoca.cli.compose import compose_config, print_help
from multicoca.cli.results import log_answers, model_card, summary, write_run_report
from multicoca.cli.runs import opened_run
from multicoca.config import Config
from multicoca.data.ledger import BrokenShare, Ledger
from multicoca.data.loader import Steps, usable_workers
from multicoca.data.sample import UnfilledBatchError
from multicoca.data.sources import Listing
from multicoca.data.splits import evaluation_splits, left_aside, training_items
from multicoca.distributed.collectives import rank, rank_0_first, wait_for_all, world_size
from multicoca.distributed.launch import available_cores, is_first, is_launched, local_processes, run_processes
from multicoca.distributed.setup import distributed, training_device
from multicoca.eval.evaluator import Answers
from multicoca.eval.suite import evaluate, probe
from multicoca.files import write_text
from multicoca.isolated import set_decode_timeout
from multicoca.modality import Processor
from multicoca.model.bundle import Bundle
from multicoca.text.tokenizer import TextTokenizer
from multicoca.train.loop import TrainOutcome, train
from multicoca.train.metrics import PeakMemory
from multicoca.train.stopping import Stopped, stopping_at_once

HELP = """usage: multicoca train [KEY=VALUE ...]

Trains one model on all configured modalities, evaluates it and writes runs/NAME/report.html.
Without arguments it trains on the built-in shapes world. On several GPUs:
torchrun --nproc-per-node 8 -m multicoca.cli.train [KEY=VALUE ...]

Groups to choose from, for example experiment=shapes_long or modality=[image]:
"""


def run_train(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return print_help("train", HELP)
    if any(is_launcher(argument) for argument in arguments):
        job = submit(arguments)
        print(f"job {job.job_id}; its output: {job.paths.stdout}")
        return 0
    try:
        with stopping_at_once():
            return _run(arguments)
    except Stopped as stop:
        if is_first():
            print(f"multicoca train: {stop}; the same command goes on", file=sys.stderr, flush=True)
        queue_again(stop.number)
        return 128 + stop.number


def _run(arguments: list[str]) -> int:
    """Trains and evaluates; returns the exit status.

    Raises:
        Stopped: by a signal.
    """
    config = _started(compose_config("train", arguments), arguments)
    device = training_device()
    if device.type == "cpu" and not is_launched():
        count = local_processes(config.train.cpu_processes, config.data.common_size())
        if count > 1:
            return run_processes(["-m", "multicoca.cli.train", *arguments], count)
    folder = Path(config.output) / config.name
    with opened_run(folder, config) if is_first() else nullcontext():
        with distributed(device, config.parallel.timeout_s):
            wait_for_all()
            run = _train_run(config, folder, device)
        if run.outcome.signal_number is None and run.is_first:
            # alone from here on: an evaluation may take longer than ranks wait for each other
            torch.set_num_threads(available_cores())
            _finish(config, run, "multicoca train " + " ".join(arguments))
    if run.outcome.signal_number is not None:
        raise Stopped(run.outcome.signal_number)
    return 0


def _started(config: Config, arguments: list[str]) -> Config:
    """Takes sizes, tokenizer and modalities from the model that training starts with, and adds new modalities."""
    if config.start_from is None:
        return config
    refused = [argument for argument in arguments if argument.startswith(("model=", "model.", "text."))]
    if refused:
        raise ValueError(f"start_from brings the sizes and the tokenizer of its model; remove {', '.join(refused)}")
    before = read_config(local_folder(config.start_from))
    modalities = {**config.modalities, **before.modalities}
    return replace(config, model=before.model, text=before.text, modalities=modalities)


@dataclass(frozen=True)
class _Run:
    """What training leaves to the evaluation."""

    folder: Path
    bundle: Bundle
    listing: Listing
    ledger: Ledger
    data_s: float
    outcome: TrainOutcome
    is_first: bool


def _train_run(config: Config, folder: Path, device: torch.device) -> _Run:
    started = time.perf_counter()
    set_decode_timeout(config.data.decode_timeout_s)
    processors = build_processors(config.modalities)
    listing = list_items(config, processors)
    ledger = Ledger(folder / "ledger.jsonl")
    problems = ledger.add(listing.problems) if rank() == 0 else []
    training_items(listing, processors)  # a modality that has none is an error at once
    tokenizer = _tokenizer(config, folder, listing)
    bundle = build_bundle(config, tokenizer)
    new = [] if config.start_from is None else start_from(bundle.network, local_folder(config.start_from))
    bundle.network.to(device)
    data_s = time.perf_counter() - started
    if rank() == 0:
        _announce(folder, bundle, listing, device, len(problems))
        if config.start_from is not None:
            parts = sorted({".".join(name.split(".")[:2]) for name in new})
            print(f"weights from {config.start_from}; new: {', '.join(parts) or 'nothing'}", flush=True)
    outcome = _train(config, folder, bundle, listing, ledger)
    return _Run(folder, bundle, listing, ledger, data_s, outcome, rank() == 0)


def list_items(config: Config, processors: Mapping[str, Processor]) -> Listing:
    """Builds the configured source and lists its items; rank 0 first, since it may write files."""
    arguments = {} if config.data.root is None else {"root": config.data.root}
    if not config.data.source:
        raise ValueError("data.source is not set; choose a source, for example data=shapes or data=folder")
    source = build(config.data.source, **arguments)
    with rank_0_first():
        return source.list_items(processors, config.seed)


def _tokenizer(config: Config, folder: Path, listing: Listing) -> TextTokenizer:
    """Reads the configured tokenizer, or learns one from the training captions; the run keeps it."""
    kept, length = folder / "tokenizer.json", config.model.context_length
    if config.start_from is not None:
        return read_tokenizer(local_folder(config.start_from), config)
    if config.text.tokenizer is not None:
        return TextTokenizer.load(Path(config.text.tokenizer), length, config.text.clean)
    with rank_0_first():
        if rank() == 0 and not kept.is_file():
            texts = (text for items in listing.of("train").values() for item in items for text in item.texts)
            tokenizer = TextTokenizer.learn(texts, config.text.vocab_size, length)
            write_text(kept, tokenizer.to_json())
    return TextTokenizer.load(kept, length)


def _announce(folder: Path, bundle: Bundle, listing: Listing, device: torch.device, num_problems: int) -> None:
    parameters = sum(parameter.numel() for parameter in bundle.network.parameters())
    modalities = list(bundle.processors)
    counts = ", ".join(f"{len(items)} {name}" for name, items in training_items(listing, modalities).items())
    tests: dict[str, list[str]] = {}
    for modality, split in evaluation_splits(listing, modalities).items():
        tests.setdefault(split, []).append(f"{len(listing.of(split).get(modality, ()))} {modality}")
    shown = "; ".join(f"{split} items: {', '.join(own)}" for split, own in tests.items()) or "test items: none"
    print(f"run: {folder}; device: {device}, {world_size()} process(es), {torch.get_num_threads()} threads")
    print(f"model: {parameters / 1e6:.2f}M parameters; training items: {counts}; {shown}")
    for line in left_aside(listing, modalities):
        print(line)
    if num_problems:
        print(f"{num_problems} items cannot be used; {folder / 'ledger.jsonl'} names each with its reason")
    sys.stdout.flush()


def _train(config: Config, folder: Path, bundle: Bundle, listing: Listing, ledger: Ledger) -> TrainOutcome:
    broken = BrokenShare(listing.listed.get("train", {}), config.data.max_broken_share, ledger.file)
    known = {(p.modality, p.key) for p in (*listing.problems, *ledger.problems) if p.split == "train"}
    for modality in bundle.processors:
        broken.add(modality, (key for name, key in known if name == modality))
    steps = Steps(
        training_items(listing, bundle.processors),
        bundle.processors,
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
        usable = _usable(config, bundle, weights)
        usable.network.eval()
        scalars, answers = probe(usable, probed, config.evaluation)
        usable.network.train()
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)
        log_answers(writer, step, answers, bundle.processors)

    on_gpu = next(bundle.network.parameters()).device.type == "cuda"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    workers = usable_workers(config.data.workers, available_cores() // local - 1 if on_gpu else 0)
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
        )
    except UnfilledBatchError as error:
        ledger.add(error.problems)
        raise


def _usable(config: Config, bundle: Bundle, weights: dict[str, Tensor] | None) -> Bundle:
    """Returns a bundle that one process can use: the trained one, or a new one with whole or averaged weights."""
    if weights is None:
        return bundle
    network = build_bundle(config, bundle.tokenizer).network
    network.load_state_dict(weights)
    return replace(bundle, network=network.to(training_device()))


def _finish(config: Config, run: _Run, command: str) -> None:
    """Evaluates and writes the model, results.json and the report."""
    folder, bundle = run.folder, _usable(config, run.bundle, run.outcome.weights)
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
    print(f"report: {(folder / 'report.html').resolve()}\nmodel:  {(folder / 'model').resolve()}")


if __name__ == "__main__":
    from multicoca.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
