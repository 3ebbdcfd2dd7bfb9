import itertools
import math

import numpy as np
import pytest
import torch

from multicoca.eval.retrieval import (
    across_retrieval,
    averaged_retrieval,
    expected_ranks,
    expected_recall,
    gallery_draws,
    retrieval_metrics,
)


def brute_force(row, positives, k):
    """Averages rank and hit over all orders of the gallery; a stable sort then leaves ties in that order."""
    ranks, hits = [], []
    for order in itertools.permutations(range(len(row))):
        ranked = sorted(order, key=lambda i: -row[i])
        rank = next(place for place, i in enumerate(ranked, 1) if positives[i])
        ranks.append(rank)
        hits.append(rank <= k)
    return np.mean(ranks), np.mean(hits)


def test_rank_and_recall_equal_the_average_over_all_orders_of_ties():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 3, (40, 6), generator=generator).float()
    positives = torch.rand(40, 6, generator=generator) < 0.4
    positives[:, 2] |= ~positives.any(dim=1)
    ranks = expected_ranks(similarity, positives)
    for k in (1, 2, 3, 5, 10):
        recall = expected_recall(similarity, positives, k)
        for row in range(40):
            rank, hit = brute_force(similarity[row].tolist(), positives[row].tolist(), k)
            assert ranks[row].item() == pytest.approx(rank)
            assert recall[row].item() == pytest.approx(hit)


def test_metrics_of_a_small_matrix_by_hand():
    # text 0 and 1 describe source 0, text 2 source 1, text 3 source 2
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.8, 0.3, 0.6, 0.7], [0.2, 0.4, 0.3, 0.1]])
    metrics = retrieval_metrics(similarity, torch.tensor([0, 0, 1, 2]))
    # source 0: its second caption is first; source 1: 0.8 and 0.7 are above 0.6; source 2: all three are above
    assert metrics["source_to_text"]["recall@1"] == pytest.approx(1 / 3)
    assert metrics["source_to_text"]["median_rank"] == 3
    # columns: 0.1 against 0.8, 0.2: rank 3; 0.9: rank 1; 0.6: rank 1; 0.1 against 0.2, 0.7: rank 3
    assert metrics["text_to_source"]["recall@1"] == pytest.approx(0.5)
    assert metrics["text_to_source"]["recall@5"] == 1
    assert metrics["text_to_source"]["median_rank"] == 2


@pytest.mark.parametrize("captions", [1, 5])
def test_a_collapsed_model_scores_chance(captions):
    items = 64
    owner = torch.arange(items).repeat_interleave(captions)
    ways = retrieval_metrics(torch.full((items, items * captions), 0.3), owner)
    for k in (1, 5, 10):
        assert ways["text_to_source"][f"recall@{k}"] == pytest.approx(k / items)
        missed = math.comb(items * captions - captions, k) / math.comb(items * captions, k)
        assert ways["source_to_text"][f"recall@{k}"] == pytest.approx(1 - missed)
    assert ways["source_to_text"]["recall@1"] == pytest.approx(1 / items)
    assert ways["text_to_source"]["median_rank"] == pytest.approx((items + 1) / 2)


def test_chunks_change_nothing(monkeypatch):
    similarity = torch.randn(20, 60, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    owner = torch.arange(60) % 20
    whole = retrieval_metrics(similarity, owner)
    monkeypatch.setattr("multicoca.eval.retrieval._CHUNK", 100)
    assert retrieval_metrics(similarity, owner) == whole


def test_not_a_number_is_an_error_that_counts_the_queries():
    similarity = torch.eye(4)
    similarity[1, 2] = similarity[3, 0] = torch.nan
    with pytest.raises(ValueError, match="2 of 4 queries .* not a number"):
        expected_ranks(similarity, torch.eye(4).bool())
    with pytest.raises(ValueError, match="not a number"):
        averaged_retrieval(similarity, torch.eye(4), torch.arange(4), list("abcd"))


def test_a_query_without_right_answer_is_an_error():
    with pytest.raises(ValueError, match="1 of 3 queries have no right answer"):
        retrieval_metrics(torch.eye(3), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="owners reach from 0 to 3"):
        retrieval_metrics(torch.eye(3), torch.tensor([0, 1, 3]))


def test_draws_share_no_caption_and_are_as_large_as_asked():
    texts = [[f"caption {i % 50}", f"own {i}"] for i in range(200)]
    draws = gallery_draws(texts, size=30, draws=8, seed=3)
    assert len(draws) == 8
    assert len({tuple(draw) for draw in draws}) == 8
    for draw in draws:
        captions = [caption for item in draw for caption in texts[item]]
        assert len(draw) == 30
        assert len(set(captions)) == len(captions)
    again = gallery_draws(texts, size=30, draws=8, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(draws, again, strict=True))
    assert [len(draw) for draw in gallery_draws(texts, size=100, draws=3)] == [50, 50, 50]


def test_one_draw_is_enough_when_it_holds_every_item():
    draws = gallery_draws([["a"], ["b"], ["c"]], size=256, draws=20)
    assert [draw.tolist() for draw in draws] == [[0, 1, 2]]
    with pytest.raises(ValueError, match="got 0 items"):
        gallery_draws([])


def test_averaged_retrieval_is_perfect_for_right_embeddings_and_says_what_it_did():
    source = torch.eye(40)
    owner = torch.arange(40).repeat_interleave(2)
    texts = [f"{caption} of {item}" for item in range(40) for caption in ("first", "second")]
    shuffled = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    result = averaged_retrieval(
        source, source[owner][shuffled], owner[shuffled], [texts[i] for i in shuffled], size=10, draws=4, seed=7
    )
    assert result["source_to_text"] == {"recall@1": 1, "recall@5": 1, "recall@10": 1, "median_rank": 1}
    assert result["text_to_source"]["recall@1"] == 1
    assert (result["gallery"], result["draws"], result["seed"], result["chance@1"]) == (10, 4, 7, 0.1)
    assert result["chance"]["text_to_source"]["recall@5"] == pytest.approx(0.5)


def test_averaged_retrieval_finds_items_by_their_own_caption_only():
    # rows 0 and 1 have the same caption and each other's embedding; in one gallery they would be confused
    source = torch.eye(3)[[1, 0, 2]]
    result = averaged_retrieval(source, torch.eye(3), torch.arange(3), ["same", "same", "other"], size=3, draws=4)
    assert result["gallery"] == 2
    assert "3 were asked for" in result["protocol"]


def test_across_retrieval_pairs_rows_in_both_directions():
    first = torch.eye(12)
    second = first.clone()
    second[0] = first[1]  # scene 0 now looks like scene 1
    texts = [[f"scene {i}"] for i in range(12)]
    result = across_retrieval(first, second, texts, texts)
    # nothing looks like first 0: all twelve tie; for first 1, second 0 and 1 tie; the rest is found
    assert result["first_to_second"]["recall@1"] == pytest.approx((1 / 12 + 0.5 + 10) / 12)
    # second 0 finds first 1; the other eleven are found
    assert result["second_to_first"]["recall@1"] == pytest.approx(11 / 12)
    assert result["gallery"] == 12
    with pytest.raises(ValueError, match="same scenes in the same order"):
        across_retrieval(first, second, texts, texts[:5])


def test_across_retrieval_separates_scenes_that_share_a_caption_of_either_kind():
    embeddings = torch.eye(4)
    first = [["a"], ["a"], ["b"], ["c"]]
    second = [["p"], ["q"], ["r"], ["r"]]
    result = across_retrieval(embeddings, embeddings, first, second, size=4, draws=6)
    assert result["gallery"] == 2
    assert result["first_to_second"]["recall@1"] == 1
