"""A batch on its way to the device."""

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from multicoca.data.sample import Batch


def batch_of(**inputs):
    return Batch("a", inputs, torch.arange(12).view(4, 3), torch.tensor([3, 2, 3, 3]), ("p", "q", "r", "s"), (), 2)


def test_the_data_loader_pins_all_of_it(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda value, *_: pinned.append(value) or value.clone())
    batch = batch_of(x=torch.zeros(4, 2), mask=torch.ones(4, 2, dtype=torch.bool))
    (got,) = pin_memory([batch])
    assert len(pinned) == 4
    assert got.inputs["x"] is not batch.inputs["x"]
    assert (got.modality, got.keys, got.number) == (batch.modality, batch.keys, batch.number)


def test_its_first_pairs_are_those_of_the_whole():
    first = batch_of(x=torch.arange(8).view(4, 2)).first(2)
    assert first.inputs["x"].tolist() == [[0, 1], [2, 3]]
    assert first.ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first.lengths.tolist() == [3, 2]
    assert first.keys == ("p", "q")
    assert first.number == 2


@pytest.mark.parametrize("other", [torch.zeros(7, 2), torch.zeros(())])
def test_a_batch_whose_inputs_cannot_be_cut_stays_whole(other):
    batch = batch_of(x=torch.zeros(4, 2), other=other)
    assert batch.first(2) is batch
