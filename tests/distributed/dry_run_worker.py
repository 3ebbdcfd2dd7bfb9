"""Rank 0 of 64 fake ones, in a mesh of 8 x 8: shards the model of every experiment and goes forward and back."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from multicoca.cli.compose import compose_training
from multicoca.distributed.parallelize import parallelize
from multicoca.runs.model_folder import build_bundle
from multicoca.text.tokenizer import TextTokenizer

CONFIGS = Path(__file__).parents[2] / "configs" / "experiment"

dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
experiments = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
assert len(experiments) >= 4
for name in experiments:
    data = ["data.root=."] if name.startswith("coca_") else []
    config = compose_training([f"experiment={name}", "parallel=hsdp", *data])
    tokenizer = TextTokenizer.learn(["a red ball"], 300, config.model.context_length)
    with torch.device("meta"):
        network = build_bundle(config.spec, tokenizer).network
    parallelize(network, config.parallel, torch.device("cpu"))
    for block in network.blocks:
        parameter = next(block.parameters())
        assert type(parameter).__name__ == "DTensor"
        assert parameter.to_local().numel() <= -(-parameter.shape[0] // 8) * parameter[0].numel()
    if sum(parameter.numel() for parameter in network.parameters()) < 1e9:  # a step of the largest takes minutes here
        network.to_empty(device="cpu")
        ids, lengths = torch.zeros(1, 16, dtype=torch.int64), torch.full((1,), 16)
        side = config.modalities["image"]["processor"]["size_px"]
        outputs = network("image", {"pixels": torch.zeros(1, 3, side, side)}, ids, lengths)
        (outputs.logit_scale.sum() + outputs.source.sum() + outputs.caption_loss).backward()
        assert next(network.blocks[0].parameters()).grad is not None
    print(name, "ok")
dist.destroy_process_group()
