"""One of two ranks of test_hangs.py: rank 1 stops itself, rank 0 waits for it in a collective."""

import os
import signal
import sys
from pathlib import Path

import torch

from multicoca.distributed.collectives import rank, sum_over_ranks
from multicoca.distributed.setup import distributed, naming_lost_ranks

with distributed(torch.device("cpu"), timeout_s=15.0), naming_lost_ranks():
    sum_over_ranks(torch.ones(1))
    if rank() == 1:
        Path(sys.argv[1]).write_text("met")
        os.kill(os.getpid(), signal.SIGSTOP)
    sum_over_ranks(torch.ones(1))
