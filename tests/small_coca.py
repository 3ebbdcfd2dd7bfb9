"""open_clip's CoCa, small and with random weights."""

import torch

SMALL = {
    "embed_dim": 48,
    "vision_cfg": dict(
        image_size=64, layers=2, width=64, patch_size=16, attentional_pool=True, attn_pooler_heads=8, output_tokens=True
    ),
    "text_cfg": dict(
        context_length=76, vocab_size=49408, width=128, heads=2, layers=2, embed_cls=True, output_tokens=True
    ),
    "multimodal_cfg": dict(context_length=76, vocab_size=49408, width=128, heads=2, layers=2, attn_pooler_heads=8),
}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Sets every tensor to random values; open_clip leaves the caption head as the memory happened to be."""
    generator = torch.Generator().manual_seed(1)
    for name, values in model.state_dict().items():
        if values.ndim >= 2:
            fan_in = values.shape[0] if name.endswith(("proj", "projection")) else values[0].numel()
            values.normal_(0, fan_in**-0.5, generator=generator)
        elif values.ndim == 1:
            values.normal_(float(name.endswith("weight")), 0.1, generator=generator)
        else:
            values.fill_(3.1)
    return model.eval()
