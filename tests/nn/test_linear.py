"""The linear layer of decoding gives what torch's gives."""

import copy
import pickle

import pytest
import torch
from torch import nn

from multicoca.nn.linear import Linear, can_pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(48, 96).eval()


def packed(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        layer(x), layer(x)
        assert layer._packed is not None
        return layer(x)


@pytest.mark.parametrize("rows", [1, 4, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_weight_gives_what_torch_gives(layer, rows, dtype):
    if not can_pack(dtype):
        pytest.skip(f"this CPU packs no {dtype}")
    layer = layer.to(dtype)
    x = torch.randn(2, rows // 2, 48).to(dtype) if rows > 1 else torch.randn(1, 48).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(packed(layer, x), nn.Linear.forward(layer, x), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_works_whether_or_not_the_cpu_packs_its_type(layer, dtype):
    layer, x = layer.to(dtype), torch.randn(4, 48).to(dtype)
    with torch.no_grad():
        first, second, third = layer(x), layer(x), layer(x)
    assert (layer._packed is not None) == can_pack(dtype)
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(second, third, rtol=0, atol=0)


def test_a_cpu_that_packs_no_bf16_is_asked_once(layer, monkeypatch):
    asked = []

    def refuse(weight, rows):
        asked.append(weight.dtype)
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw")

    can_pack.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse, raising=False)
    layer, x = layer.to(torch.bfloat16), torch.randn(4, 48).to(torch.bfloat16)
    with torch.no_grad():
        results = [layer(x) for _ in range(4)]
    can_pack.cache_clear()
    assert asked == [torch.bfloat16]
    assert all(torch.equal(results[0], other) for other in results)


def test_a_changed_weight_is_seen_at_once(layer):
    x = torch.randn(4, 48)
    before = packed(layer, x)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        after = layer(x)
    torch.testing.assert_close(after, 2 * before, rtol=1e-5, atol=1e-5)


def test_many_rows_gradients_and_a_switched_off_onednn_take_torchs_kernel(layer):
    x = torch.randn(4, 48, requires_grad=True)
    layer(x), layer(x).sum().backward()
    assert layer._packed is None
    with torch.no_grad():
        many = torch.randn(65, 48)
        layer(many), layer(many)
        assert layer._packed is None
        with torch.backends.mkldnn.flags(enabled=False):
            layer(x), layer(x)
            assert layer._packed is None


def test_a_packed_layer_can_be_copied_pickled_and_trained(layer):
    x = torch.randn(4, 48)
    expected = packed(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(packed(other, x), expected, rtol=0, atol=0)
    layer.train()
    assert layer._packed is None
