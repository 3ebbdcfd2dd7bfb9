import pytest
import torch

from multicoca.eval.zero_shot import class_embeddings, zero_shot_accuracy


def test_class_embedding_is_the_normalised_mean_of_normalised_sentences():
    known = {"a cat": [3.0, 0.0], "the cat": [0.0, 5.0], "a dog": [0.0, 2.0], "the dog": [0.0, 7.0]}
    classes = class_embeddings(lambda s: torch.tensor([known[one] for one in s]), ["cat", "dog"], ["a {}", "the {}"])
    torch.testing.assert_close(classes, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="0 class names"):
        class_embeddings(lambda s: torch.zeros(len(s), 2), [], ["{}"])


def test_accuracy_by_hand():
    classes = torch.eye(6)
    source = classes[[0, 0, 0, 1]] + 0.1 * classes[[1, 1, 1, 0]]
    source[2] = classes[5] + 0.1 * classes[4]  # nearest is 5, then 4; the right one ties with three others
    result = zero_shot_accuracy(source, classes, torch.tensor([0, 0, 0, 1]))
    assert result["top1"] == pytest.approx(3 / 4)
    assert result["top5"] == pytest.approx((3 + 3 / 4) / 4)
    assert result["per_class_mean"] == pytest.approx((2 / 3 + 1) / 2)
    assert (result["used"], result["chance"]) == (4, 1 / 6)


def test_a_collapsed_model_scores_chance():
    result = zero_shot_accuracy(torch.ones(30, 4), torch.ones(10, 4), torch.arange(30) % 10)
    assert result["top1"] == pytest.approx(0.1)
    assert result["top5"] == pytest.approx(0.5)
    assert result["per_class_mean"] == pytest.approx(0.1)


def test_bad_input_is_an_error():
    classes = torch.eye(3)
    with pytest.raises(ValueError, match="1 of 2 queries"):
        zero_shot_accuracy(torch.tensor([[1.0, 0, 0], [torch.nan, 0, 0]]), classes, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="one of the 3 classes"):
        zero_shot_accuracy(classes, classes, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="no source"):
        zero_shot_accuracy(torch.empty(0, 3), classes, torch.empty(0, dtype=torch.long))
