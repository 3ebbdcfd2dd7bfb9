"""The `multicoca` command: finds the subcommand and turns errors of the user's into one readable line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import select
import sys
from importlib.metadata import version

from multicoca.distributed.launch import may_say
from multicoca.terminal import printable

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
    "check": "before training on a cluster, under torchrun: links, gradients, checkpoints, time-outs",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status: 0 done, 2 the user's input cannot be used."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal has all characters
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
        unknown = f"there is no command '{printable(command)}'; choose one of {', '.join(COMMANDS)}"
        print(f"multicoca: {unknown}", file=sys.stderr)
        return 2
    module = {"export": "convert"}.get(command, command)
    try:
        status = vars(importlib.import_module(f"multicoca.cli.{module}"))[f"run_{command}"](rest)
        sys.stdout.flush()
        return status
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError) and sys.platform != "win32" and _output_is_closed():
            return 128 + 13  # as a process that SIGPIPE ends
        says = f"multicoca {command}: {describe(error)}"
        if may_say(says):
            print(says, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"multicoca {command}: interrupted", file=sys.stderr)
        return 130


def describe(error: BaseException) -> str:
    """Returns what to tell a user of an error: one line, but for our own lists of differences."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no permission for {printable(error.filename or 'a file')} ({error.strerror}); change the permissions of "
            "the file or its folder, or give another place"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: {printable(error.filename or 'a file')} cannot be written ({error.strerror}); make "
            "room, or give a place on another disk"
        )
    text = str(error) or type(error).__name__
    if not _is_our_own(error):
        return printable(" ".join(text.split()))
    if "\n  " in text:  # an indented line is layout; any other line end is part of a name
        return "\n".join(map(printable, text.split("\n")))
    return printable(text)


def _is_our_own(error: BaseException) -> bool:
    """Whether our code wrote the whole message: it raised the error itself, and not because of another one."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else place.tb_frame.f_globals.get("__name__", "")
    return module.startswith("multicoca") and error.__cause__ is None


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; what is left is then thrown away."""
    try:
        output = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return False
    poll = select.poll()
    poll.register(output, 0)
    is_closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return is_closed


if __name__ == "__main__":
    sys.exit(main())
