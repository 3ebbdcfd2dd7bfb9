"""One rank of test_compile.py: both contrastive losses in one graph each give what they give in none."""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from multicoca.distributed.collectives import rank
from multicoca.model.losses import contrastive_loss, sigmoid_loss

dist.init_process_group("gloo")
generator = torch.Generator().manual_seed(rank())
rows = [F.normalize(torch.randn(8, 16, generator=generator), dim=1) for _ in range(2)]
inputs = [value.requires_grad_() for value in (*rows, torch.tensor([14.0]), torch.tensor([-10.0]))]
for loss, count in ((contrastive_loss, 3), (sigmoid_loss, 4)):
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(*inputs[:count])
        results.append((value.detach(), *torch.autograd.grad(value, inputs[:count])))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
dist.destroy_process_group()
