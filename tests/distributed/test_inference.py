"""Embeddings, captions and scores from a model in shards are those of the whole model, also between steps."""

from pathlib import Path

import torch
from conftest import small_model
from ranks import run_ranks
from test_gradients import batches_of

from multicoca.distributed.parallelize import Engine
from multicoca.model.coca import CoCa
from multicoca.model.generate import DecodingConfig, generate
from multicoca.train.optim import Average, OptimConfig, build_optimizers
from multicoca.train.step import LossConfig, accumulate_gradients, optimizer_step

BEGIN, END = 1, 2
DECODING = {"greedy": DecodingConfig(), "beam": DecodingConfig("beam", captions=2, num_beams=3)}


def outspoken() -> CoCa:
    """A model whose captions end at different places on the two ranks."""
    model = small_model(pooler="cascade").double()
    for head in model.heads.values():
        words = torch.nn.init.normal_(head.caption_head.weight, generator=torch.Generator().manual_seed(6))
        words.data[END] *= 2
    return model


@torch.no_grad()
def answers(model: CoCa, rank: int) -> dict[str, torch.Tensor]:
    """All that a model says of a rank's items and of some texts."""
    (batch, *_) = batches_of(rank, 2)
    context, found = model.encode("a", {"x": batch.inputs["x"][:2] * 5})
    ids, lengths = batch.ids[:3], batch.lengths[:3]
    said = {"source": found, "text": model.encode_text(batch.ids, batch.lengths)}
    said["scores"] = model.log_probs("a", context, ids, lengths)
    said["logits"] = model.caption_logits("a", batch.inputs, batch.ids, batch.lengths)[0]
    for name, config in DECODING.items():
        written = generate(model, "a", context, BEGIN, END, config)
        said |= {f"{name} ids": written.ids, f"{name} scores": written.scores}
    return said


def test_a_model_in_shards_says_what_the_whole_one_says(tmp_path):
    run_ranks(Path(__file__).with_name("inference_worker.py"), 2, str(tmp_path))
    sharded = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = outspoken()
    optimizers, average = build_optimizers(model, OptimConfig(lr=1e-2)), Average(model, 0.5)
    untrained = [answers(model.eval(), rank) for rank in range(2)]
    for step in range(2):
        model.eval()
        expected = {f"step {step}": [answers(model, rank) for rank in range(2)]}
        with average.in_place():
            expected[f"average {step}"] = [answers(model, rank) for rank in range(2)]
        for moment, own in expected.items():
            for rank, said in enumerate(own):
                for name, value in said.items():
                    torch.testing.assert_close(sharded[rank][moment][name], value, rtol=1e-9, atol=1e-9, msg=name)
        model.train()
        accumulate_gradients(Engine(model, model), batches_of(0, 1), LossConfig(), key=(step,))
        optimizer_step(list(model.parameters()), optimizers, [1e-2], 1.0)
        average.update(step)
    for name in DECODING:
        first, second = (said[f"{name} ids"].shape[-1] for said in untrained)
        assert first < second, name
