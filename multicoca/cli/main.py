"""The `multicoca` command: finds the subcommand and turns errors of the user's into one readable line.

It also decides how torch's threads wait, which must be known before torch is loaded: asleep. Their default is to
spin, and with a data worker or anything else on the same cores a spinning thread keeps the one it waits for from
running; a training step then takes up to fifty times as long.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version

COMMANDS = {
    "train": "train a model; without arguments on the built-in shapes world, in minutes",
    "evaluate": "evaluate a model folder on a source of data",
    "caption": "write captions for files",
    "index": "embed the files of a folder for search",
    "search": "find files in an index by a sentence or by another file",
    "data": "write WebDataset shards, index them, or read all data once to find what is broken",
    "convert": "make a model folder of public weights (open_clip's CoCa)",
    "export": "write a model's weights in the form of open_clip's CoCa",
    "doctor": "say what is installed, what is missing and the command that fixes it",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status: 0 done, 2 the user's input cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: multicoca COMMAND [ARGUMENTS]\n")
        for name, says in COMMANDS.items():
            print(f"  {name:<10}{says}")
        print("\nmulticoca COMMAND --help tells more; multicoca --version says which version this is.")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"multicoca {version('multicoca')}")
        return 0
    if command not in COMMANDS:
        print(f"multicoca: there is no command '{command}'; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = {"index": "search", "export": "convert"}.get(command, command)
    try:
        return vars(importlib.import_module(f"multicoca.cli.{module}"))[f"run_{command}"](rest)
    except (ValueError, ImportError, OSError) as error:
        print(f"multicoca {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"multicoca {command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
