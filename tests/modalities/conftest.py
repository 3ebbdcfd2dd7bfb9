"""Weights that timm takes for published ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.nn.Module, str], None]:
    """Makes `pretrained=True` of a timm name read a model's weights from a file, in place of the hub's."""
    registry = pytest.importorskip("timm.models._registry")

    def as_published(model: torch.nn.Module, name: str) -> None:
        torch.save(model.state_dict(), tmp_path / "hub.pt")
        published = replace(registry._model_pretrained_cfgs[name], file=str(tmp_path / "hub.pt"))
        monkeypatch.setitem(registry._model_pretrained_cfgs, name, published)

    return as_published
