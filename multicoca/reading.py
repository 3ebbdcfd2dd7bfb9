"""What all readers of files share: the one error for a file that cannot be used, and the guard that raises it.

A file can break a parser in more ways than can be listed: declared sizes that exhaust memory, nesting that exhausts
the stack, plain bugs. So a reader runs inside `refuse_broken`, and every exception is a problem of that file. Nothing
heavy is imported here, so that a process made for decoding (`multicoca.isolated`) starts at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class UnreadableFileError(ValueError):
    """A file that cannot be turned into a sample. The message is the reason, fit for a person to read."""


@contextmanager
def refuse_broken(what: str = "") -> Iterator[None]:
    """Turns whatever a reader raises into `UnreadableFileError`.

    An `ImportError` passes: a package is missing, no file is broken.

    Args:
        what: how the message begins, e.g. "cannot read points from scan.ply".
    """
    begin = f"{what}: " if what else ""
    try:
        yield
    except ImportError:
        raise
    except UnreadableFileError as error:
        if not begin:
            raise
        raise UnreadableFileError(f"{begin}{error}") from error
    except Exception as error:  # see above
        raise UnreadableFileError(f"{begin}{describe(error)}") from error


def describe(error: BaseException) -> str:
    """Returns an exception as a phrase of one line: what it says, and its type where that tells more."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())[:500]
    if said and isinstance(error, (OSError, ValueError, SyntaxError)):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def require(package: str, extra: str) -> ModuleType:
    """Imports an optional package, or says which command installs it.

    Args:
        package: the module to import, e.g. "timm".
        extra: the extra of this project that brings it, e.g. "image".

    Raises:
        ImportError: the package is missing or broken; the message gives the pip command.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the package '{package}' could not be imported ({error}). "
            f"It comes with the '{extra}' extra: pip install 'multicoca[{extra}]'"
        ) from error
