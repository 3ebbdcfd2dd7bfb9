"""The loss in chunks is the loss over the whole matrix, and so are its gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from multicoca.nn.cross_entropy import NO_TARGET, summed_cross_entropy

VOCABULARY = 53


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (37,), generator=generator)
    targets[[3, 30, 36]] = NO_TARGET
    return hidden, weight, targets


def plain(hidden, weight, targets, label_smoothing=0.0, z_loss=0.0):
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_sums = logits.logsumexp(1)[targets != NO_TARGET]
    loss = cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return loss + z_loss * log_sums.square().sum(), (logits.argmax(1) == targets).sum()


@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-2)])
@pytest.mark.parametrize("rows", [1, 5, 37, 100])
def test_loss_and_gradients_are_those_of_the_whole_matrix(problem, rows, label_smoothing, z_loss):
    *tensors, targets = problem
    targets[:9] = (tensors[0] @ tensors[1].T).argmax(1)[:9]  # some are right
    results = []
    for loss_of in (plain, lambda *args: summed_cross_entropy(*args, chunk_elements=rows * VOCABULARY)):
        hidden, weight = (tensor.clone().requires_grad_() for tensor in tensors)
        loss, right = loss_of(hidden, weight, targets, label_smoothing, z_loss)
        (0.3 * loss + 2 * hidden.sum()).backward()
        results.append((loss.detach(), right, hidden.grad, weight.grad))
    assert results[0][1] >= 9
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_stay_close(problem, dtype):
    hidden, weight, targets = problem[0].to(dtype), problem[1].to(dtype), problem[2]
    hidden.requires_grad_(), weight.requires_grad_()
    loss, _ = summed_cross_entropy(hidden, weight, targets, chunk_elements=5 * VOCABULARY)
    loss.backward()
    found = hidden.grad.double(), weight.grad.double()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected, _ = plain(*exact, targets)
    expected.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=1e-2)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other.grad, rtol=0.05, atol=0.05)


def test_under_autocast_the_gradient_of_the_weight_is_summed_in_fp32(problem):
    hidden, weight, targets = problem[0].float().requires_grad_(), problem[1].float().requires_grad_(), problem[2]
    gradients = []
    for elements in (VOCABULARY, 100 * VOCABULARY):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = summed_cross_entropy(hidden, weight, targets, chunk_elements=elements)
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
        assert [gradient.dtype for gradient in gradients[-1]] == [torch.float32] * 2
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=2e-2, atol=2e-2)


def test_a_frozen_part_gets_no_gradient_and_without_any_only_the_loss_comes(problem):
    hidden, weight, targets = problem
    hidden.requires_grad_()
    summed_cross_entropy(hidden, weight, targets)[0].backward()
    assert weight.grad is None
    with torch.no_grad():
        found = summed_cross_entropy(hidden, weight, targets)
    assert [float(value) for value in found] == pytest.approx([float(value) for value in plain(*problem)])


def test_a_second_backward_pass_is_an_error_and_not_a_wrong_gradient(problem):
    hidden, weight, targets = problem
    loss, _ = summed_cross_entropy(hidden.requires_grad_(), weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()
