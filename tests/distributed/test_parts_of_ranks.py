"""Steps with parts off in two processes: the gradients of both engines are those of one process."""

from pathlib import Path

import torch
from ranks import run_ranks
from test_parts import CASES, batches_of, prepared

from multicoca.distributed.parallelize import Engine
from multicoca.train.step import accumulate_gradients


def test_every_case_gives_the_gradients_of_one_process(tmp_path):
    run_ranks(Path(__file__).with_name("parts_worker.py"), 2, str(tmp_path))
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    for case in CASES:
        model, loss, modalities, dtype = prepared(case)
        accumulate_gradients(Engine(model, model), batches_of(modalities, dtype), loss)
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        for name, parameter in model.named_parameters():
            for strategy in ("ddp", "fsdp"):
                gradient = found[case, strategy][name]
                if parameter.grad is None:
                    assert gradient is None, (case, strategy, name)
                    continue
                scale = float(parameter.grad.abs().max())
                assert torch.allclose(gradient, parameter.grad, rtol=tolerance, atol=tolerance * scale + 1e-7), (
                    case,
                    strategy,
                    name,
                )
