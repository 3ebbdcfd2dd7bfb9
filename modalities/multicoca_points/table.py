"""Rows of numbers in text: parsed in full, or refused with the line that cannot be.

pandas parses quickly but fills short rows with NaN; where it gives a NaN or an error, the rows are read again, one by
one, by Python's own rules for numbers. Both give the same.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float64

from multicoca.reading import UnreadableFileError, require

_PLAIN = b"0123456789+-.eE, \t\r\n"  # what pandas is given; it also takes True, and stops at a zero byte
_SHOWN = 60  # characters of a bad line in a message


def read_table(text: bytes, first_line: int, commas: bool = False) -> Float64[np.ndarray, "rows columns"]:
    """Parses all rows of a text; blank lines are left out.

    Args:
        text: what to parse.
        first_line: the number of its first line in the file, for messages.
        commas: values are separated by commas instead of white space.

    Raises:
        UnreadableFileError: a row has another number of values than the first, or a value is no number.
        ImportError: pandas is not installed.
    """
    if not text.strip():
        return np.empty((0, 0))
    if not text.translate(None, _PLAIN):
        pandas = require("pandas", "points")
        try:
            separator = "," if commas else r"\s+"
            found = pandas.read_csv(
                io.BytesIO(text), sep=separator, header=None, dtype=np.float64, skipinitialspace=True
            ).to_numpy()
            if not np.isnan(found).any():
                return found
        except (ValueError, pandas.errors.ParserError, OverflowError):
            pass  # the plain way says which line is wrong
    return _read_plainly(text, first_line, commas)


def _read_plainly(text: bytes, first_line: int, commas: bool) -> Float64[np.ndarray, "rows columns"]:
    """Parses row by row."""
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), first_line):
        if not line.strip():
            continue
        words = [word.strip() for word in line.split(b",")] if commas else line.split()
        if rows and len(words) != len(rows[0]):
            raise UnreadableFileError(f"line {number} has {len(words)} values where others have {len(rows[0])}: "
                                      f"{shown(line)}")  # fmt: skip
        try:
            rows.append([_number(word) for word in words])
        except ValueError:
            raise UnreadableFileError(f"line {number} is not a row of numbers: {shown(line)}") from None
    return np.array(rows, dtype=np.float64)


def _number(word: bytes) -> float:
    if b"_" in word:  # Python's own sign for thousands
        raise ValueError(word)
    return float(word)


def shown(line: bytes) -> str:
    """Returns a line as it can stand in a message."""
    text = ascii(line[:_SHOWN].decode("latin-1").strip())
    return text + ("..." if len(line) > _SHOWN else "")
