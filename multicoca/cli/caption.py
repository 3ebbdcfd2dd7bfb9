"""`multicoca caption MODEL FILE...`: writes captions for files or URLs of any modality of the model."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from multicoca.api import load
from multicoca.modality import UnreadableFileError
from multicoca.model.generate import STRATEGIES, DecodingConfig
from multicoca.terminal import printable

_SAYS = {
    "strategy": f"one of {', '.join(STRATEGIES)}",
    "captions": "how many for each file, best first; more than one are printed with their scores",
    "num_beams": "texts that beam search keeps",
    "length_penalty": "scores are sums of log-probabilities / length^penalty",
    "temperature": "of sampling",
    "top_k": "sample from the k most likely tokens; 0 means all",
    "top_p": "sampling keeps the likeliest tokens that together have this probability",
    "min_length": "words' tokens at the least",
    "max_length": "tokens at the most, with the marks of beginning and end",
    "seed": "of sampling",
    "rerank": "order the captions by the similarity of their embeddings to the file's",
}


def run_caption(arguments: list[str]) -> int:
    """Runs the command; exit status 1 when a file could not be read."""
    parser = argparse.ArgumentParser(prog="multicoca caption", description=__doc__)
    parser.add_argument("model", help="a model folder, or owner/name of the hub")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a path, or a URL that fsspec knows")
    for field in fields(DecodingConfig):
        kind = int if field.default is None else type(field.default)
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": kind.__name__}
        says = f"{_SAYS[field.name]} (default: {field.default})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=says, **how)
    options = parser.parse_args(arguments)
    decoding = DecodingConfig(**{field.name: getattr(options, field.name) for field in fields(DecodingConfig)})
    model = load(options.model)
    failures = 0
    for file in options.files:
        try:
            (found,) = model.describe([file], decoding=decoding)
        except UnreadableFileError as error:
            failures += 1
            print(f"multicoca caption: {printable(error)}", file=sys.stderr)
            continue
        for caption in found.captions:
            score = caption.score if caption.similarity is None else caption.similarity
            scored = () if len(found.captions) == 1 else (f"{score:.3f}",)
            print("\t".join((printable(file), *scored, printable(caption.text))))
    return 1 if failures else 0
