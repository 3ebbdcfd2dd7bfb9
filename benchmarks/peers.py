"""What the benchmarks against open_clip share: the same random weights in both."""

from __future__ import annotations

import logging

import open_clip
import torch

from multicoca.api import MultiCoCa
from multicoca.convert.models import convert_open_clip


def coca_pair(name: str) -> tuple[torch.nn.Module, MultiCoCa]:
    """Builds open_clip's CoCa and the same one here; its caption head, which it leaves as memory was, is filled."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name)
    head = theirs.text_decoder.text_projection
    torch.nn.init.normal_(head, std=4 * head.shape[0] ** -0.5)  # so that some words are clearly likelier than others
    return theirs, convert_open_clip(theirs.state_dict())
