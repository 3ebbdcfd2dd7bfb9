"""The signals that end a run in order: while it trains it saves at the next step, elsewhere it ends at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from multicoca.distributed.launch import heeded_signals


class Stopped(BaseException):
    """A signal ended the run where there was nothing to save.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.number = number


class StopSignal:
    """Notes the signals that end a run; the second one of a kind has its usual effect."""

    def __enter__(self) -> StopSignal:
        self.number: int | None = None
        self._previous = {number: signal.signal(number, self._note) for number in heeded_signals()}
        return self

    def _note(self, number: int, interrupted: object) -> None:
        del interrupted
        self.number = number
        signal.signal(number, self._previous[number])

    def __exit__(self, *error: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Context in which such a signal raises `Stopped`."""

    def stop(number: int, interrupted: object) -> None:
        del interrupted
        raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
