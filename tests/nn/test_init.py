"""What is drawn, and what is left out, when a model is built."""

import torch
from torch import nn

from multicoca.nn.init import RandomParametersSkipped


class Features(nn.Module):
    """A random table beside weights, as random Fourier features have it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        nn.init.trunc_normal_(self.linear.weight)
        table = torch.empty(5).normal_(generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", table, persistent=False)


def test_only_parameters_are_skipped():
    drawn = Features()
    with RandomParametersSkipped():
        skipped = Features()
        weight = nn.Parameter(torch.full((4,), 7.0))
        nn.init.normal_(weight)
    torch.testing.assert_close(skipped.table, drawn.table)
    assert weight.tolist() == [7.0] * 4
    nn.init.normal_(weight)
    assert weight.tolist() != [7.0] * 4
