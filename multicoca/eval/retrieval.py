"""Retrieval between sources and texts, and between two kinds of source, as plain functions.

The decision worth knowing: equal similarities are never resolved by position. Every figure is the expectation
over a random order of the tied entries, so that a collapsed model, whose similarities are all equal, scores
chance; counting only the strictly better ones would give it 100%. Sets where many items share a caption are
scored on galleries in which no caption belongs to two items, since there a wrong answer could be a right one.

Source: recall at k and median rank over all captions as in CLIP4Clip (arXiv 2104.08860), section 4.2. With
several captions an item, text -> source asks with every caption, and source -> text takes an item's best caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

RECALLS = (1, 5, 10)  # the cut-offs that the literature reports

_CHUNK = 1 << 24  # similarities looked at together: 64 MiB in fp32


@dataclass(frozen=True)
class _Standing:
    """Where the best positive of each query stands, as counts of shape [queries], in float64 on the CPU."""

    better: Tensor  # gallery entries strictly above it
    tied_wrong: Tensor  # other entries that equal it
    tied_right: Tensor  # positives that equal it, itself included

    def ranks(self) -> Tensor:
        """The expected number of entries up to the first of the tied positives."""
        return 1 + self.better + self.tied_wrong / (self.tied_right + 1)

    def recall(self, k: int) -> Tensor:
        """The probability that one of the tied positives is among the first k (hypergeometric)."""
        tied = self.tied_wrong + self.tied_right
        slots = (k - self.better).clamp(min=0).minimum(tied)
        drawn = slots.minimum(self.tied_wrong)  # more slots than wrong entries cannot miss
        missed = (
            _log_factorial(self.tied_wrong)
            - _log_factorial(self.tied_wrong - drawn)
            - _log_factorial(tied)
            + _log_factorial(tied - drawn)
        )
        return torch.where(slots > self.tied_wrong, 1.0, 1 - missed.exp())


def expected_ranks(
    similarity: Float[Tensor, "queries gallery"], positives: Bool[Tensor, "queries gallery"]
) -> Float[Tensor, " queries"]:
    """Returns the 1-based expected rank of each query's best positive under a random order of ties.

    With s entries strictly better, and t wrong ones among the p positives that tie for the best, it is
    1 + s + t / (p + 1).

    Args:
        similarity: how well each gallery entry fits each query.
        positives: True where the entry is a right answer; at least one in each row.

    Raises:
        ValueError: a similarity is not a number, or a query has no right answer.
    """
    return _standing(similarity, positives).ranks()


def expected_recall(
    similarity: Float[Tensor, "queries gallery"], positives: Bool[Tensor, "queries gallery"], k: int
) -> Float[Tensor, " queries"]:
    """Returns the probability that a right answer is among the first k under a random order of ties.

    Args:
        similarity: how well each gallery entry fits each query.
        positives: True where the entry is a right answer; at least one in each row.
        k: how many answers are looked at, at least 1.

    Raises:
        ValueError: a similarity is not a number, or a query has no right answer.
    """
    return _standing(similarity, positives).recall(k)


def retrieval_metrics(
    similarity: Float[Tensor, "sources texts"], owner: Int[Tensor, " texts"]
) -> dict[str, dict[str, float]]:
    """Computes recall at 1, 5 and 10 (shares of 1) and the median rank in both directions.

    Args:
        similarity: of every source to every text.
        owner: the row of the source that each text describes.

    Returns:
        {"source_to_text": {...}, "text_to_source": {...}}, each with "recall@1", "recall@5", "recall@10" and
        "median_rank". From a source, its best caption counts; from texts, every caption is a query.

    Raises:
        ValueError: a similarity is not a number, a source has no text, or an owner is not a row.
    """
    num_sources = similarity.shape[0]
    if len(owner) and (owner.min() < 0 or owner.max() >= num_sources):
        raise ValueError(
            f"the texts' owners reach from {int(owner.min())} to {int(owner.max())}; "
            f"they must be rows of the similarity, 0 to {num_sources - 1}"
        )
    owner = owner.to(similarity.device)
    sources = torch.arange(num_sources, device=similarity.device)
    return {
        "source_to_text": _summary(similarity, sources, owner),
        "text_to_source": _summary(similarity.T, owner, sources),
    }


def gallery_draws(
    texts_per_item: Sequence[Sequence[str]], size: int = 256, draws: int = 20, seed: int = 0
) -> list[np.ndarray]:
    """Draws galleries in which no caption belongs to two items.

    Items are taken in a random order, each unless one of its captions is already there. Where fewer than `size`
    can be had, all draws are cut to the shortest one, so that their chance levels agree.

    Args:
        texts_per_item: each item's captions.
        size: how many items a gallery should hold.
        draws: how many galleries; only one is returned when it holds every item.
        seed: of the draws; the result is a pure function of the arguments.

    Returns:
        Equally long arrays of item numbers, in ascending order.

    Raises:
        ValueError: there is no item, or `size` or `draws` is below 1.
    """
    if not texts_per_item or size < 1 or draws < 1:
        raise ValueError(
            f"got {len(texts_per_item)} items, size {size} and draws {draws}; each must be at least 1 to draw galleries"
        )
    chosen = [_distinct_items(texts_per_item, size, np.random.default_rng((seed, draw))) for draw in range(draws)]
    shortest = min(len(items) for items in chosen)
    if shortest == len(texts_per_item):
        chosen = chosen[:1]
    return [np.sort(items[:shortest]) for items in chosen]


def averaged_retrieval(
    source: Float[Tensor, "sources width"],
    text: Float[Tensor, "texts width"],
    owner: Int[Tensor, " texts"],
    texts: Sequence[str],
    size: int = 256,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, object]:
    """Computes retrieval on drawn galleries of distinct captions and averages over the draws.

    Args:
        source: embeddings of the sources; they are normalised here, in fp32.
        text: embeddings of the captions.
        owner: the row of the source that each caption describes.
        texts: the captions themselves, in the order of `text`.
        size: items in a gallery.
        draws: galleries to average over.
        seed: of the draws.

    Returns:
        "source_to_text" and "text_to_source" as in `retrieval_metrics`; "chance", the same figures for a model
        whose similarities are all equal; "chance@1"; "gallery" and "draws" as they were used; "seed"; "protocol".

    Raises:
        ValueError: an embedding is not a number, or a source has no caption.
    """
    owner = owner.cpu()
    rows_per_item: list[list[int]] = [[] for _ in range(len(source))]
    for row, item in enumerate(owner.tolist()):
        rows_per_item[item].append(row)
    galleries = gallery_draws([[texts[row] for row in rows] for rows in rows_per_item], size, draws, seed)
    source, text = _normalized(source), _normalized(text)
    scored, by_chance = [], []
    for items in galleries:
        rows = [row for item in items for row in rows_per_item[item]]
        local_owner = torch.from_numpy(np.searchsorted(items, owner[rows].numpy()))
        similarity = _product(source[torch.from_numpy(items)], text[rows])
        scored.append(retrieval_metrics(similarity, local_owner))
        by_chance.append(retrieval_metrics(torch.zeros_like(similarity), local_owner))
    return {**_mean(scored), "chance": _mean(by_chance), **_protocol(galleries, size, seed)}


def across_retrieval(
    first: Float[Tensor, "scenes width"],
    second: Float[Tensor, "scenes width"],
    texts_first: Sequence[Sequence[str]],
    texts_second: Sequence[Sequence[str]],
    size: int = 256,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, object]:
    """Computes retrieval between two kinds of source that show the same scenes, row by row.

    Args:
        first: embeddings of the scenes as one kind of source; they are normalised here, in fp32.
        second: embeddings of the same scenes as the other kind.
        texts_first: each scene's captions for the first kind; a gallery holds no caption of either kind twice.
        texts_second: each scene's captions for the second kind.
        size: scenes in a gallery.
        draws: galleries to average over.
        seed: of the draws.

    Returns:
        "first_to_second" and "second_to_first" with recall and median rank, and the rest of `averaged_retrieval`.

    Raises:
        ValueError: an embedding is not a number, or the arguments are not equally long.
    """
    if not len(first) == len(second) == len(texts_first) == len(texts_second):
        raise ValueError(
            f"got {len(first)} and {len(second)} embeddings with captions for {len(texts_first)} and "
            f"{len(texts_second)} scenes; all four must describe the same scenes in the same order"
        )
    captions = [[*one, *other] for one, other in zip(texts_first, texts_second, strict=True)]
    galleries = gallery_draws(captions, size, draws, seed)
    first, second = _normalized(first), _normalized(second)
    scored, by_chance = [], []
    for items in map(torch.from_numpy, galleries):
        similarity = _product(first[items], second[items])
        owner = torch.arange(len(items))
        scored.append(retrieval_metrics(similarity, owner))
        by_chance.append(retrieval_metrics(torch.zeros_like(similarity), owner))
    names = {"source_to_text": "first_to_second", "text_to_source": "second_to_first"}
    named = {names[way]: figures for way, figures in _mean(scored).items()}
    chance = {names[way]: figures for way, figures in _mean(by_chance).items()}
    return {**named, "chance": chance, **_protocol(galleries, size, seed)}


def _standing(similarity: Tensor, positives: Tensor) -> _Standing:
    broken = int(similarity.isnan().any(dim=1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(similarity)} queries have a similarity that is not a number; "
            "the embeddings hold NaN, or infinities of both signs"
        )
    without = int((~positives.any(dim=1)).sum())
    if without:
        raise ValueError(f"{without} of {len(similarity)} queries have no right answer in the gallery")
    best = similarity.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
    tied = similarity == best
    return _Standing(
        better=(similarity > best).sum(dim=1).cpu().double(),
        tied_wrong=(tied & ~positives).sum(dim=1).cpu().double(),
        tied_right=(tied & positives).sum(dim=1).cpu().double(),
    )


def _summary(similarity: Tensor, query_owner: Tensor, gallery_owner: Tensor) -> dict[str, float]:
    """Summarises one direction, a chunk of queries at a time."""
    rows = max(1, _CHUNK // max(1, similarity.shape[1]))
    standings = [
        _standing(part, owners[:, None] == gallery_owner)
        for part, owners in zip(similarity.split(rows), query_owner.split(rows), strict=True)
    ]
    figures = {f"recall@{k}": float(torch.cat([part.recall(k) for part in standings]).mean()) for k in RECALLS}
    ranks = torch.cat([part.ranks() for part in standings])
    return {**figures, "median_rank": float(np.median(ranks.numpy()))}


def _distinct_items(texts_per_item: Sequence[Sequence[str]], size: int, rng: np.random.Generator) -> np.ndarray:
    taken: set[str] = set()
    items: list[int] = []
    for item in rng.permutation(len(texts_per_item)):
        captions = set(texts_per_item[item])
        if taken.isdisjoint(captions):
            taken |= captions
            items.append(int(item))
            if len(items) == size:
                break
    return np.array(items)


def _log_factorial(count: Tensor) -> Tensor:
    return torch.lgamma(count + 1)


def _normalized(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings.detach().float(), dim=-1)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Multiplies in fp32, whatever precision surrounds it: bf16 has too few values to tell a gallery apart."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def _mean(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {way: {key: float(np.mean([part[way][key] for part in parts])) for key in parts[0][way]} for way in parts[0]}


def _protocol(galleries: list[np.ndarray], size: int, seed: int) -> dict[str, object]:
    gallery, draws = len(galleries[0]), len(galleries)
    wanted = "" if gallery == size else f" ({size} were asked for, no more have captions of their own)"
    words = f"a gallery of {gallery} items{wanted}, no caption shared by two of them, mean over {draws} draws"
    return {"protocol": words, "gallery": gallery, "draws": draws, "seed": seed, "chance@1": 1 / gallery}
