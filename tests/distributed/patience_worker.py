"""One of two ranks of test_hangs.py: rank 0 takes longer than collectives may, where others wait for it patiently."""

import time

import torch

from multicoca.distributed.collectives import rank, rank_0_first, sum_over_ranks
from multicoca.distributed.setup import distributed

with distributed(torch.device("cpu"), timeout_s=10.0):
    with rank_0_first():
        if rank() == 0:
            time.sleep(15)
    assert sum_over_ranks(torch.ones(1)) == 2
