"""One of two ranks of test_hangs.py: all get the objects of all and the largest number of a signal."""

import signal

import torch

from multicoca.distributed.collectives import rank
from multicoca.distributed.heartbeat import Heartbeat
from multicoca.distributed.setup import distributed

with distributed(torch.device("cpu")):
    heartbeat = Heartbeat(60.0)
    assert heartbeat.exchange(None, []) == (None, [])
    assert heartbeat.exchange(None, [["a"], []][rank()]) == (None, ["a"])
    assert heartbeat.exchange([signal.SIGINT, signal.SIGUSR1][rank()], ["b", "c"][: rank() + 1]) == (
        signal.SIGUSR1,
        ["b", "b", "c"],
    )
