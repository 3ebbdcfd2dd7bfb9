"""One rank of test_compile.py: steps with every block compiled, by both engines, beside steps with none."""

import os

os.environ["JAXTYPING_DISABLE"] = "1"  # its checks cannot be compiled

import torch
import torch.distributed as dist
from conftest import small_model
from test_gradients import batches_of
from torch._dynamo.utils import counters

from multicoca.distributed.parallelize import ParallelConfig, parallelize
from multicoca.train.step import LossConfig, accumulate_gradients


def gradients(parallel: ParallelConfig) -> dict[str, torch.Tensor]:
    """Returns the gradients of two steps, whole."""
    model = small_model(pooler="cascade")
    engine = parallelize(model, parallel, torch.device("cpu"))
    for _ in range(2):
        accumulate_gradients(engine, batches_of(dist.get_rank(), 2, double=False), LossConfig())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if engine.is_sharded else grad for name, grad in found.items()}


dist.init_process_group("gloo")
plain = gradients(ParallelConfig())
for strategy in ("ddp", "fsdp"):
    for recomputed in (False, True):
        torch._dynamo.reset()
        counters.clear()
        found = gradients(ParallelConfig(strategy, compile=True, checkpoint_activations=recomputed))
        assert counters["stats"]["unique_graphs"] >= 3  # an encoder's block and those of both text halves
        assert found.keys() == plain.keys()
        for name, value in plain.items():
            error = (found[name] - value).abs().max()
            assert error <= 1e-5 * value.abs().max(), (strategy, recomputed, name, error)
        assert not counters["graph_break"], counters["graph_break"]
dist.destroy_process_group()
