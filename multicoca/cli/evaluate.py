"""`multicoca evaluate model=FOLDER data=... data.root=...`: evaluates a model folder on a source of data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from multicoca.api import load
from multicoca.cli.compose import compose_config, print_help
from multicoca.cli.results import summary, write_run_report
from multicoca.cli.train import list_items
from multicoca.data.ledger import Ledger
from multicoca.data.loader import usable_workers
from multicoca.data.splits import refuse_ambiguous
from multicoca.distributed.launch import available_cores
from multicoca.eval.suite import evaluate
from multicoca.files import write_text
from multicoca.isolated import set_decode_timeout

HELP = """usage: multicoca evaluate model=FOLDER [data=shapes|folder] [data.root=FOLDER] [out=FOLDER] [KEY=VALUE ...]

Evaluates a model on the test split of a source and writes results.json, ledger.jsonl and report.html into
`out` (default: evaluation/ inside the model folder). Protocols are the keys of evaluation.*:
"""


def run_evaluate(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return print_help("evaluate", HELP)
    own = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("model=", "out=")))
    if "model" not in own:
        raise ValueError("no model is given; say model=FOLDER, for example model=runs/shapes/model")
    overrides = [argument for argument in arguments if not argument.startswith(("model=", "out="))]
    model = load(own["model"])
    composed = compose_config("evaluate", overrides)
    config = replace(composed, **{part: getattr(model.config, part) for part in ("model", "modalities", "text")})
    folder = Path(own.get("out", Path(own["model"]) / "evaluation"))
    folder.mkdir(parents=True, exist_ok=True)
    set_decode_timeout(config.data.decode_timeout_s)
    listing = list_items(config, model.bundle.processors)
    refuse_ambiguous(listing)
    workers = usable_workers(config.data.workers, available_cores() - 1)
    results, answers, problems = evaluate(model.bundle, listing, config.evaluation, config.seed, workers)
    ledger = folder / "ledger.jsonl"
    ledger.unlink(missing_ok=True)
    Ledger(ledger).add(problems)
    results["broken_items"] = len(problems)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    write_run_report(folder, config, model.bundle, results, answers, "multicoca evaluate " + " ".join(arguments))
    print(summary(results))
    if problems:
        print(f"{len(problems)} items could not be used; {ledger} names each with its reason")
    print(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}")
    return 0
