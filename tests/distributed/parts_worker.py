"""One of two processes: every case of tests/train/test_parts.py, by the engine and wrapped in torch's DDP."""

import sys

import torch
import torch.distributed as dist
from test_parts import CASES, batches_of, prepared
from torch.nn.parallel import DistributedDataParallel

from multicoca.model.losses import contrastive_loss
from multicoca.train.step import accumulate_gradients


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for case in CASES:
        model, loss, modalities, dtype = prepared(case)
        own = batches_of(modalities, dtype, rank, 2)
        accumulate_gradients(model, own, loss)
        engine = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert any(gradient is None for gradient in engine.values()) == (case == "absent modality"), case

        model, *_ = prepared(case)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        for number, batch in enumerate(own):
            count = torch.stack([(one.lengths - 1).sum() for one in batches_of(modalities, dtype)])[number]
            outputs = wrapped(batch.modality, batch.inputs, batch.ids, batch.lengths)
            total = loss.contrastive_weight * contrastive_loss(outputs.source, outputs.text, outputs.logit_scale)
            total = total + loss.captioning_weight * outputs.caption_loss / count
            (2 * total / len(own)).backward()  # DDP takes the mean over ranks, the convention is the sum
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                zero = torch.zeros_like(parameter)
                found, expected = (zero if each is None else each for each in (parameter.grad, engine[name]))
                tolerance = 1e-5 if dtype == torch.float32 else 5e-2
                scale = float(expected.abs().max())
                assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale + 1e-7), (case, name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.exit(0)
