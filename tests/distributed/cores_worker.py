"""One of two ranks of test_hangs.py: first both may use the same two cores, then each has its own."""

import os

import torch

from multicoca.distributed.collectives import rank
from multicoca.distributed.launch import usable_cores
from multicoca.distributed.setup import distributed, own_cores

with distributed(torch.device("cpu")):
    both = sorted(usable_cores())[:2]
    os.sched_setaffinity(0, both)
    assert own_cores() == 1
    os.sched_setaffinity(0, both[rank() :][:1])
    assert own_cores() == 1
    os.sched_setaffinity(0, both if rank() == 0 else both[:1])
    assert own_cores() == [2, 1][rank()]
