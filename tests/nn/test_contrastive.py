"""The contrastive loss in tiles is the plain one: values and all gradients, alone and as a part of several ranks."""

import pytest
import torch
import torch.nn.functional as F

from multicoca.nn.contrastive import summed_contrastive, summed_sigmoid


def pairs(count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(count, 16, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)]
    return [value.to(dtype).requires_grad_() for value in (*rows, torch.tensor([14.0]))]


def plain(source, text, all_source, all_text, scale, first):
    labels = torch.arange(len(source)) + first
    to_text = F.cross_entropy(scale * source @ all_text.T, labels, reduction="sum")
    return to_text + F.cross_entropy(scale * text @ all_source.T, labels, reduction="sum")


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("own", [slice(0, 23), slice(5, 12)], ids=["alone", "a part"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_tiles_give_the_plain_loss_and_gradients(rows, own, dtype, tolerance):
    found, expected = pairs(23, dtype), pairs(23, dtype)
    for values, loss_of in ((found, summed_contrastive), (expected, plain)):
        source, text, scale = values
        more = {"tile_elements": rows * 23} if loss_of is summed_contrastive else {}
        loss = loss_of(source[own], text[own], source, text, scale, own.start, **more)
        (0.3 * loss).backward()
        values.append(loss)
    for one, other in zip(found[:3], expected[:3], strict=True):
        error = (one.grad - other.grad).abs().max() / other.grad.abs().max()
        assert error < tolerance
    torch.testing.assert_close(found[3], expected[3], rtol=tolerance, atol=0)


def test_logits_are_fp32_whatever_the_embeddings_are():
    narrow = pairs(23, torch.bfloat16)
    wide = [value.detach().float().requires_grad_() for value in narrow]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_contrastive(*narrow[:2], *narrow[:2], narrow[2])
    expected = plain(*wide[:2], *wide[:2], wide[2], 0)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(narrow[0].grad, wide[0].grad.bfloat16(), rtol=1e-2, atol=1e-4)


def test_a_large_scale_does_not_overflow():
    source, text, scale = pairs(23, torch.float32)
    loss = summed_contrastive(source, source, source, source, scale * 1e4)
    assert loss.isfinite()


def test_gradients_come_once():
    source, text, scale = pairs(5)
    loss = summed_contrastive(source, text, source, text, scale)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("own", [slice(0, 23), slice(5, 12)], ids=["alone", "a part"])
def test_sigmoid_in_tiles_is_the_plain_one(rows, own):
    results = []
    for in_tiles in (True, False):
        source, text, scale = pairs(23)
        bias = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
        if in_tiles:
            loss = summed_sigmoid(source[own], text, scale, bias, own.start, tile_elements=rows * 23)
        else:  # SigLIP's pseudo-code
            labels = 2 * torch.eye(23, dtype=torch.float64)[own] - 1
            loss = -F.logsigmoid(labels * (scale * source[own] @ text.T + bias)).sum()
        (0.3 * loss).backward()
        results.append((loss.detach(), *[value.grad for value in (source, text, scale, bias)]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
