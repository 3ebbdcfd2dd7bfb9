"""`multicoca caption MODEL FILE...`: writes a caption for each file, of any modality of the model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from multicoca.api import load
from multicoca.modality import UnreadableFileError


def run_caption(arguments: list[str]) -> int:
    """Runs the command; exit status 1 when a file could not be read."""
    parser = argparse.ArgumentParser(prog="multicoca caption", description=__doc__)
    parser.add_argument("model", help="a model folder, or owner/name of the hub")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    model = load(options.model)
    failures = 0
    for file in options.files:
        try:
            print(f"{file}\t{model.caption([file])[0]}")
        except UnreadableFileError as error:
            failures += 1
            print(f"multicoca caption: {error}", file=sys.stderr)
    return 1 if failures else 0
