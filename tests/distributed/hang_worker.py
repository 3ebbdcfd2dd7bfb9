"""One of two ranks of test_hangs.py: rank 1 stops itself, rank 0 waits for it in a collective or in the heartbeat."""

import os
import signal
import sys
from pathlib import Path

import torch

from multicoca.distributed.collectives import rank, sum_over_ranks
from multicoca.distributed.heartbeat import Heartbeat
from multicoca.distributed.setup import distributed, naming_lost_ranks

met, where = Path(sys.argv[1]), sys.argv[2]
limit_s = {"collective": 15.0, "heartbeat": 20.0}[where]
with distributed(torch.device("cpu"), limit_s), naming_lost_ranks():
    heartbeat = Heartbeat(limit_s)
    sum_over_ranks(torch.ones(1))
    heartbeat.exchange(None, [])
    if rank() == 1:
        met.write_text("met")
        os.kill(os.getpid(), signal.SIGSTOP)
    if where == "heartbeat":
        heartbeat.exchange(None, [])
    else:
        sum_over_ranks(torch.ones(1))
