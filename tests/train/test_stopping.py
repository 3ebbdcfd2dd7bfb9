"""Signals end a run in order, but for those that were ignored from the start."""

import os
import signal

import pytest

from multicoca.distributed.launch import STOP_SIGNALS, heeded_signals
from multicoca.train.stopping import Stopped, StopSignal, stopping_at_once


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_noted_while_training_and_ends_a_run_elsewhere(number, heeded):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        assert stop.number == number
    with pytest.raises(Stopped) as stopped, stopping_at_once():
        os.kill(os.getpid(), number)
    assert stopped.value.number == number
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_from_the_start_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        assert signal.SIGHUP not in heeded_signals()
        with StopSignal() as stop, stopping_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
