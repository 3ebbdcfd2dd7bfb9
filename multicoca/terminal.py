"""What people read on a terminal or in a log file: text that cannot harm it, and progress.

File names and captions may hold anything, escape sequences included. A log file is no terminal: a bar would be one
endless line there, so progress is written as a line every few seconds.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY_S = 10.0  # of progress, where stderr is no terminal
_REDRAW_S = 0.5
# control characters, line separators, changes of the writing direction, and half characters
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_WITH_TOTAL = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"
_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {rate_fmt}{postfix}"


def printable(text: object) -> str:
    """Returns a text that is one line and cannot control a terminal.

    An escape character becomes \\x1b, a line feed \\n, a byte that is not UTF-8 \\xNN.
    """
    return _ESCAPED.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name, see PEP 383
        number -= 0xDC00
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def progress(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "item",
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
) -> tqdm[T]:
    """Returns a progress bar on stderr, or one that writes a line every `LINE_EVERY_S` where that is no terminal.

    Args:
        iterable: what is gone through; without it, `update` tells how far it is.
        total: how many there are; the length of `iterable` by default.
        desc: what is done.
        unit: what is counted.
        initial: how many were done before.
        leave: whether a finished bar stays on the terminal.
        disable: shows nothing.
    """
    settings: dict[str, Any] = {"total": total, "desc": printable(desc), "unit": unit, "initial": initial}
    if disable or sys.stderr.isatty():
        return tqdm(iterable, leave=leave, disable=disable, mininterval=_REDRAW_S, **settings)
    if total is None and iterable is not None and hasattr(iterable, "__len__"):
        total = len(iterable)
    form = _WITHOUT_TOTAL if total is None else _WITH_TOTAL
    lines = {"file": _Lines(), "mininterval": LINE_EVERY_S, "miniters": 1, "position": 0, "bar_format": form}
    return tqdm(iterable, **lines, **settings)


class _Lines:
    """A stream for tqdm that writes what it draws as lines with a time stamp."""

    encoding = "ascii"

    def write(self, text: str) -> None:
        """Writes a line unless the text only moves the cursor or clears."""
        drawn = text.strip()
        if drawn:
            sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {drawn}\n")

    def flush(self) -> None:
        """Writes what is pending."""
        sys.stderr.flush()
