"""Products in fp32, whatever a program allows elsewhere."""

import torch

from multicoca.nn.precision import exact_products


def test_a_gpu_rounds_nothing_to_tf32_while_an_evaluation_runs():
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with exact_products():
            assert [place.allow_tf32 for place in places] == [False, False]
        assert [place.allow_tf32 for place in places] == [True, before[1]]
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
