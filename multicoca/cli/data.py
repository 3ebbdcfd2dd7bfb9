"""`multicoca data`: write shards, index them, and read every item of a source once to see what is broken."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

from multicoca.build import build_processors
from multicoca.cli.compose import compose_reading
from multicoca.cli.train import list_items
from multicoca.data.annotations import parse_split
from multicoca.data.ledger import Ledger
from multicoca.data.shard_index import index_shards, opened
from multicoca.data.shard_writer import OUTSIDE, write_shards
from multicoca.data.storage import find_files
from multicoca.data.verify import verify
from multicoca.distributed.launch import available_cores
from multicoca.files import check_writable, write_text
from multicoca.isolated import set_decode_timeout
from multicoca.terminal import printable, progress
from multicoca.text.tokenizer import TextTokenizer

_ANY_LENGTH = 1 << 20  # tokens; longer than any caption
_EXAMPLES = 3  # files named on the screen for each kind of problem; --out names all


def run_data(arguments: list[str]) -> int:
    """Runs the command; returns its exit status: 1 if `verify` found something broken."""
    parser = argparse.ArgumentParser("multicoca data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    source = "KEY=VALUE arguments name the source, for example data=folder data.root=FOLDER modality=[image]"
    shard = commands.add_parser("shard", help="write WebDataset shards from any source", epilog=source)
    shard.add_argument("out", type=Path, help="folder for the shards")
    shard.add_argument("--size-mb", type=float, default=1000.0, help="size of a shard at which it is closed")
    shard.add_argument("--split", help="write this split alone")
    shard.add_argument(
        "--outside", action="store_true", help="copy files outside of data.root, too, by .., absolute paths or links"
    )
    shard.set_defaults(run=_shard)
    check = commands.add_parser(
        "verify", help="read and decode all once; status 1 if anything is broken", epilog=source
    )
    check.add_argument("--workers", type=int, default=available_cores(), help="processes that read")
    check.add_argument("--tokenizer", type=Path, help="a tokenizer.json, to count the captions' tokens")
    check.add_argument("--out", type=Path, help="JSON file for all that was found")
    check.set_defaults(run=_verify)
    index = commands.add_parser("index", help="build the indexes of shards, as training does when they are missing")
    index.add_argument("shards", nargs="+", help="files, folders or patterns, local or URLs")
    index.set_defaults(run=_index)
    options, options.overrides = parser.parse_known_args(arguments)
    unknown = [argument for argument in options.overrides if argument.startswith("-") or "=" not in argument]
    if unknown or (options.overrides and options.run is _index):
        parser.error(f"unknown arguments: {' '.join(unknown or options.overrides)}; {source}")
    return options.run(options)


def _shard(options: argparse.Namespace) -> int:
    if options.size_mb <= 0:
        raise ValueError(f"--size-mb is {options.size_mb}; expected a number above 0")
    if any(options.out.glob("*.tar")):
        raise ValueError(f"{options.out} holds shards already; choose another folder or remove them")
    check_writable(options.out / "ledger.jsonl")
    config = compose_reading(options.overrides)
    listing = list_items(config, build_processors(config.modalities))
    options.split = parse_split(options.split) or None
    splits = [options.split] if options.split else list(listing.splits)
    if options.split and not listing.of(options.split):
        raise ValueError(f"there is no split '{options.split}'; the splits are {', '.join(listing.splits)}")
    ledger, written, outside = Ledger(options.out / "ledger.jsonl"), 0, 0
    roots = () if options.outside else listing.roots
    # a shard that cannot be read belongs to no split
    ledger.add(problem for problem in listing.problems if options.split in (None, problem.split) or not problem.split)
    for split in splits:
        own = listing.of(split)
        items = chain.from_iterable(own.values())
        problems = write_shards(items, options.out, split, round(options.size_mb * 1e6), roots)
        for problem in progress(problems, total=sum(map(len, own.values())), desc=f"writing {split}"):
            ledger.add([problem] if problem is not None else [])
            written += problem is None
            outside += problem is not None and OUTSIDE in problem.reason
    print(f"{written} items in {len(list(options.out.glob('*.tar')))} shards: {printable(options.out)}")
    if len(ledger):
        file = printable(ledger.file)
        print(f"{len(ledger)} items cannot be used and were left out; {file} names each with its reason")
    if outside:
        print(f"{outside} of them lie outside of data.root (by .., an absolute path or a link); --outside copies them")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.out is not None:
        check_writable(options.out)
    config = compose_reading(options.overrides)
    set_decode_timeout(config.data.decode_timeout_s)
    processors = build_processors(config.modalities)
    listing = list_items(config, processors)
    count = None
    if options.tokenizer is not None:
        tokenizer = TextTokenizer.load(options.tokenizer, _ANY_LENGTH)
        count = lambda text: int(tokenizer([text])[1][0])  # noqa: E731
    results = verify(listing, processors, options.workers, count)
    for split, by_modality in results.items():
        for modality, found in by_modality.items():
            print("\n".join(map(printable, _lines(split, modality, found))))
    if options.out is not None:
        write_text(options.out, json.dumps(results, indent=1))
        print(f"all of it: {printable(options.out)}")
    return int(any(found["broken"] for by_modality in results.values() for found in by_modality.values()))


def _lines(split: str, modality: str, found: dict[str, Any]) -> list[str]:
    """Returns what is shown of one modality of a split."""
    title = f"{split} {modality}".strip()
    lines = [f"{title}: {found['readable']:,} of {found['listed']:,} can be read, {found['bytes'] / 1e6:,.1f} MB"]
    lines += [f"  {name}: {shape}" for name, shape in found["shapes"].items()]
    captions = dict(found["captions"])
    number = captions.pop("count")
    if number:
        spreads = ("/".join(f"{value:g}" for value in spread) for spread in captions.values())
        named = ", ".join(f"{name.replace('_', ' ')} {spread}" for name, spread in zip(captions, spreads, strict=True))
        lines.append(f"  captions: {number:,}; least/median/most: {named}")
    for remark, count in found["remarks"].items():
        lines.append(f"  {count:,} of {found['readable']:,} ({count / found['readable']:.0%}): {remark}")
    if found["repeated_keys"]:
        lines.append(f"  keys that occur again: {found['repeated_keys']:,}")
    for kind, count in found["broken_by_kind"].items():
        lines.append(f"  {count:,} broken: {kind}")
        own = (broken for broken in found["broken"] if broken["kind"] == kind)
        lines += [f"    {broken['file']}: {broken['reason']}" for broken in islice(own, _EXAMPLES)]
    return lines


def _index(options: argparse.Namespace) -> int:
    shards = find_files(options.shards, ".tar")
    files = index_shards(shards)
    samples, places = 0, set()
    for file, shard in zip(files, shards, strict=True):
        index = opened(file, shard)
        samples += len(index.arrays["hash"])
        places.add(str(file.parent))
        for problem in index.about["problems"]:
            print(printable(f"{shard}: {problem}"), file=sys.stderr)
        for sample, reason in index.about["reasons"].items():
            print(printable(f"{shard}::{index.record(int(sample))['key']}: {reason}"), file=sys.stderr)
    print(printable(f"{samples:,} samples in {len(shards):,} shards; indexes in {', '.join(sorted(places))}"))
    return 0
