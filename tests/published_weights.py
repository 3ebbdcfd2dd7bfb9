"""Weights that timm takes for published ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch


def publish(model: torch.nn.Module, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `pretrained=True` of a timm name read a model's weights from a file, in place of the hub's."""
    registry = pytest.importorskip("timm.models._registry")
    torch.save(model.state_dict(), folder / "hub.pt")
    published = replace(registry._model_pretrained_cfgs[name], file=str(folder / "hub.pt"))
    monkeypatch.setitem(registry._model_pretrained_cfgs, name, published)
