"""Writing captions: greedy, beam search, or sampling; every token is computed once.

Each item's captions hang on nothing but the item: not on the batch it comes in, nor on when others end.
Sources: nucleus sampling, Holtzman et al. (arXiv 1904.09751); length penalty, Wu et al. (arXiv 1609.08144), in the
simpler form sum / length^penalty; sampling by Gumbel noise, Kool et al. (arXiv 1903.06059), section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicoca.distributed.collectives import true_on_all_ranks
from multicoca.model.coca import CoCa
from multicoca.tokens import Tokens

STRATEGIES = ("greedy", "beam", "sample")


@dataclass(frozen=True)
class DecodingConfig:
    """How captions are written.

    Attributes:
        strategy: "greedy", "beam" or "sample".
        captions: how many for each item, best first; greedy decoding has one, beam search at most `num_beams`.
        num_beams: texts that beam search keeps.
        length_penalty: a text's score is the sum of its log-probabilities / length^penalty; 0 prefers short texts.
        temperature: of sampling; below 1 it prefers what is likely.
        top_k: sample from the k most likely tokens; 0 means all.
        top_p: sampling keeps the likeliest tokens that together have this probability.
        min_length: words' tokens at the least, BOS and EOS not counted.
        max_length: tokens at the most, with BOS and EOS; None takes the model's context length.
        seed: of sampling; an item's captions are the same for the same seed, in any batch.
        rerank: order an item's captions by the similarity of their embeddings to its own.
    """

    strategy: str = "greedy"
    captions: int = 1
    num_beams: int = 6
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_length: int = 0
    max_length: int | None = None
    seed: int = 0
    rerank: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"the decoding strategy is '{self.strategy}'; choose one of {', '.join(STRATEGIES)}")
        most = {"greedy": 1, "beam": self.num_beams, "sample": self.captions}[self.strategy]
        if not 1 <= self.captions <= most:
            raise ValueError(f"captions is {self.captions}; with '{self.strategy}' it must be from 1 to {max(most, 1)}")
        if self.num_beams < 1 or self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"num_beams is {self.num_beams}, temperature {self.temperature}, top_k {self.top_k}, "
                f"top_p {self.top_p}; expected num_beams >= 1, temperature > 0, top_k >= 0, 0 < top_p <= 1"
            )
        if self.min_length < 0 or (self.max_length is not None and self.max_length < self.min_length + 2):
            raise ValueError(
                f"min_length is {self.min_length} and max_length {self.max_length}; expected 0 or more, and "
                "max_length at least 2 above it, for BOS and EOS"
            )


def decoding_config(decoding: DecodingConfig | None, settings: Mapping[str, Any]) -> DecodingConfig:
    """Returns a configuration, or one that is made of its fields.

    Raises:
        ValueError: a field is unknown or wrong, or both are given.
    """
    known = [field.name for field in fields(DecodingConfig)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"there is no argument {', '.join(unknown)}; decoding is set by {', '.join(known)}")
    if decoding is not None and settings:
        raise ValueError(f"decoding and {', '.join(settings)} were both given; give either, or set it in decoding")
    return decoding or DecodingConfig(**settings)


@dataclass(frozen=True)
class Generated:
    """Captions of each item, best first.

    Attributes:
        ids: start with BOS; after a text's EOS only EOS follows.
        log_probs: the model's own log-probability of each token after BOS, whatever the temperature; 0 after EOS.
        scores: log-probability of each text / (its tokens after BOS)^length_penalty.
    """

    ids: Int[Tensor, "items captions length"]
    log_probs: Float[Tensor, "items captions targets"]
    scores: Float[Tensor, "items captions"]


@torch.no_grad()
def generate(
    model: CoCa,
    modality: str,
    context: Tokens,
    begin_id: int,
    end_id: int,
    config: DecodingConfig | None = None,
    banned: tuple[int, ...] = (),
) -> Generated:
    """Writes captions; with parameters in shards all ranks do so together, each about items of its own.

    Args:
        model: the model, in evaluation mode.
        modality: whose caption head writes.
        context: what `model.encode` gave.
        begin_id: the token that starts a text; it is never written again.
        end_id: the token that ends it.
        config: how; greedily by default.
        banned: more tokens that are never written, such as padding.

    Raises:
        ValueError: a text may become longer than the model's context length.
    """
    config = config or DecodingConfig()
    writer = _Writer(model, modality, context, begin_id, end_id, config, banned)
    return writer.search() if config.strategy == "beam" else writer.draw()


class _Writer:
    """The texts being written: `texts` of them in a row for each item."""

    def __init__(
        self,
        model: CoCa,
        modality: str,
        context: Tokens,
        begin_id: int,
        end_id: int,
        config: DecodingConfig,
        banned: tuple[int, ...],
    ):
        self.model, self.modality, self.config, self.end_id = model, modality, config, end_id
        self.items = len(context.values)
        self.texts = config.num_beams if config.strategy == "beam" else config.captions
        self.max_length = config.max_length or model.config.context_length
        self.banned = [begin_id, *banned]
        self.device = context.values.device
        self.state = model.text.begin(context, self.max_length)
        self.ids = torch.full((self.items, self.texts, 1), begin_id, device=self.device)
        self.log_probs = torch.zeros(self.items, self.texts, 0, device=self.device)

    def next_log_probs(self) -> Float[Tensor, "items texts vocabulary"]:
        """Returns the model's log-probabilities of each text's next token; -inf where a token is not allowed."""
        logits = self.model.next_token_logits(self.modality, self.ids[..., -1:].flatten(0, 1), self.state)
        scores = logits.log_softmax(dim=-1)
        scores[:, self.banned] = -torch.inf
        if self.ids.shape[-1] <= self.config.min_length:
            scores[:, self.end_id] = -torch.inf
        return scores.unflatten(0, (self.items, self.texts))

    def append(self, chosen: Int[Tensor, "items texts"], log_probs: Float[Tensor, "items texts"]) -> None:
        """Adds a token to each text."""
        self.ids = torch.cat([self.ids, chosen[..., None]], dim=-1)
        self.log_probs = torch.cat([self.log_probs, log_probs[..., None]], dim=-1)

    def draw(self) -> Generated:
        """Writes greedily or by sampling, each text for itself."""
        ended = torch.zeros(self.items, self.texts, dtype=torch.bool, device=self.device)
        noise = torch.Generator().manual_seed(self.config.seed)
        while self.ids.shape[-1] < self.max_length and not self._all(ended):
            scores = self.next_log_probs()
            ranked = scores if self.config.strategy == "greedy" else self._perturbed(scores, noise)
            chosen = ranked.argmax(dim=-1).masked_fill(ended, self.end_id)
            own = scores.gather(-1, chosen[..., None])[..., 0].masked_fill(ended, 0.0)
            self.append(chosen, own)
            ended |= chosen == self.end_id
        scores = self._scores(self.log_probs.sum(dim=-1), self._lengths(self.ids))
        order = scores.argsort(dim=1, descending=True, stable=True)
        return self._sorted(self.ids, self.log_probs, scores, order)

    def _perturbed(self, scores: Tensor, noise: torch.Generator) -> Tensor:
        """Adds Gumbel noise to what may be drawn, so that the largest is a sample.

        The noise is drawn for the texts of one item and serves all items, so that no item hangs on the others.
        """
        scores = (scores / self.config.temperature).log_softmax(dim=-1)
        if self.config.top_k:
            kth = scores.topk(min(self.config.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        if self.config.top_p < 1:
            likely, order = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
            outside = likely.cumsum(dim=-1) - likely >= self.config.top_p  # what stands before it is enough
            scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        uniform = torch.rand(scores.shape[1:], generator=noise, dtype=torch.float64)
        gumbel = -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()
        return scores + gumbel.to(scores)

    def search(self) -> Generated:
        """Beam search: the best texts that end are kept aside; it stops when no open one can become better."""
        items, beams, device = self.items, self.texts, self.device
        sums = torch.full((items, beams), -torch.inf, device=device)
        sums[:, 0] = 0.0  # all beams are equal at the start: go on from one
        best = torch.full((items, beams), -torch.inf, device=device)
        best_ids = torch.full((items, beams, self.max_length), self.end_id, device=device)
        best_log_probs = torch.zeros(items, beams, self.max_length - 1, device=device)
        while self.ids.shape[-1] < self.max_length:
            scores = self.next_log_probs()
            length = self.ids.shape[-1]  # tokens after BOS, with the one to come
            vocabulary = scores.shape[-1]
            totals = sums[..., None] + scores
            ended = self._scores(totals[..., self.end_id], torch.tensor(length, device=device))
            best, kept = torch.cat([best, ended], dim=1).topk(beams, dim=1)
            ends = torch.full_like(self.ids[..., :1], self.end_id)
            candidates = _padded(torch.cat([self.ids, ends], dim=-1), self.max_length, self.end_id)
            candidate_log_probs = torch.cat([self.log_probs, scores[..., self.end_id, None]], dim=-1)
            candidate_log_probs = _padded(candidate_log_probs, self.max_length - 1, 0.0)
            best_ids = _rows(torch.cat([best_ids, candidates], dim=1), kept)
            best_log_probs = _rows(torch.cat([best_log_probs, candidate_log_probs], dim=1), kept)
            totals[..., self.end_id] = -torch.inf
            sums, flat = totals.flatten(1).topk(beams, dim=1)
            parents, chosen = flat // vocabulary, flat % vocabulary
            own = _rows(scores, parents).gather(-1, chosen[..., None])[..., 0]
            self.ids, self.log_probs = _rows(self.ids, parents), _rows(self.log_probs, parents)
            self.append(chosen, own)
            hoped = torch.maximum(
                self._scores(sums[:, 0], torch.tensor(length + 1, device=device)),
                self._scores(sums[:, 0], torch.tensor(self.max_length - 1, device=device)),
            )
            if self._all(best[:, self.config.captions - 1] >= hoped):
                break
            self.state.select((parents + torch.arange(items, device=device)[:, None] * beams).flatten())
        else:  # texts that reached the limit stand beside those that ended
            cut = self._scores(sums, torch.tensor(self.max_length - 1, device=device))
            best, kept = torch.cat([best, cut], dim=1).topk(beams, dim=1)
            best_ids = _rows(torch.cat([best_ids, self.ids], dim=1), kept)
            best_log_probs = _rows(torch.cat([best_log_probs, self.log_probs], dim=1), kept)
        order = torch.arange(beams, device=device).expand(items, beams)
        return self._sorted(best_ids, best_log_probs, best, order)

    def _all(self, done: Tensor) -> bool:
        """Whether all is done, on all ranks if each step needs them all."""
        return true_on_all_ranks(done.all()) if self.model.in_step else bool(done.all())

    def _scores(self, sums: Tensor, lengths: Tensor) -> Tensor:
        return sums / lengths.clamp(min=1) ** self.config.length_penalty

    def _lengths(self, ids: Tensor) -> Tensor:
        """Counts the tokens after BOS, EOS included."""
        words = (ids[..., 1:] != self.end_id).sum(dim=-1)
        return (words + 1).clamp(max=ids.shape[-1] - 1)

    def _sorted(self, ids: Tensor, log_probs: Tensor, scores: Tensor, order: Tensor) -> Generated:
        """Keeps the first captions of an order, without columns that hold nothing but ends."""
        order = order[:, : self.config.captions]
        ids = _rows(ids, order)
        length = int(self._lengths(ids).max()) + 1
        return Generated(ids[..., :length], _rows(log_probs, order)[..., : length - 1], scores.gather(1, order))


def _rows(values: Tensor, rows: Int[Tensor, "items chosen"]) -> Tensor:
    """Returns values[i, rows[i, j]] as [i, j]."""
    return values[torch.arange(len(values), device=values.device)[:, None], rows]


def _padded(values: Tensor, length: int, fill: float | int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=fill)
