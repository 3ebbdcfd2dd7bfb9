"""One of two ranks of test_hangs.py: it ends with a status while a thread of it waits for something."""

import threading

import torch

from multicoca.distributed.setup import distributed, end_process

threading.Thread(target=threading.Event().wait).start()
with distributed(torch.device("cpu")):
    end_process(7)
