"""One of two ranks of test_hangs.py: an error ends it although a thread of it waits for something."""

import threading

import torch

from multicoca.distributed.setup import distributed, run_as_rank


def fail() -> int:
    with distributed(torch.device("cpu")):
        raise RuntimeError("broken")


threading.Thread(target=threading.Event().wait).start()
run_as_rank(fail)
