"""Decoding against the plain way: logits of whole texts, every text enumerated, items alone."""

import itertools

import pytest
import torch
from conftest import VOCAB, small_model

from multicoca.model.generate import DecodingConfig, Generated, generate
from multicoca.tokens import Tokens

BEGIN, END = 1, 2
STRATEGIES = [
    DecodingConfig(),
    DecodingConfig("beam", captions=3, num_beams=4),
    DecodingConfig("sample", captions=3, seed=5),
    DecodingConfig("sample", captions=2, top_k=5, top_p=0.8, temperature=0.7),
]


@pytest.fixture
def outspoken():
    """A model whose random weights make some tokens likely, the end among them."""
    model = small_model().eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.caption_head.weight *= 8
            head.caption_head.weight[END] *= 3
    return model


@pytest.fixture
def context(outspoken):
    mask = torch.arange(7) < torch.tensor([7, 4, 1, 6, 7, 2])[:, None]
    source = torch.randn(6, 7, 6, generator=torch.Generator().manual_seed(3))
    return outspoken.encode("a", {"x": source, "mask": mask})[0]


def one(context: Tokens, index: int) -> Tokens:
    mask = None if context.mask is None else context.mask[index : index + 1]
    return Tokens(context.values[index : index + 1], mask)


@torch.no_grad()
def whole_text_log_probs(model, context: Tokens, ids: torch.Tensor) -> torch.Tensor:
    """The log-probabilities [texts, targets, vocabulary] by one pass over whole texts, as in training."""
    rows = Tokens(
        context.values.expand(len(ids), -1, -1), None if context.mask is None else context.mask.expand(len(ids), -1)
    )
    texts, _ = model.text.unimodal(ids, torch.full((len(ids),), ids.shape[1]))
    return model.heads["a"].caption_head(model.text.multimodal(texts[:, :-1], rows)).log_softmax(dim=-1)


@pytest.mark.parametrize("first", [1, 4])
def test_cached_logits_are_those_of_whole_texts(outspoken, context, first):
    ids = torch.randint(3, VOCAB, (12, 9), generator=torch.Generator().manual_seed(0))  # two texts for each item
    with torch.no_grad():
        state = outspoken.text.begin(context, 12)
        steps = [outspoken.next_token_logits("a", ids[:, :first], state)]
        steps += [outspoken.next_token_logits("a", ids[:, i : i + 1], state) for i in range(first, 9)]
    for item in range(6):
        own = ids[2 * item : 2 * item + 2]
        expected = whole_text_log_probs(outspoken, one(context, item), torch.nn.functional.pad(own, (0, 1)))
        for position, logits in enumerate(steps, start=first - 1):
            found = logits[2 * item : 2 * item + 2].log_softmax(dim=-1)
            torch.testing.assert_close(found, expected[:, position], rtol=1e-5, atol=1e-5)


def test_greedy_takes_the_likeliest_token_each_time(outspoken, context):
    found = generate(outspoken, "a", context, BEGIN, END)
    ended = set()
    for item in range(6):
        ids = found.ids[item]
        expected = whole_text_log_probs(outspoken, one(context, item), ids)[0]
        expected[:, BEGIN] = -torch.inf
        for position, token in enumerate(ids[0, 1:].tolist()):
            after_end = END in ids[0, 1 : position + 1]
            assert token == (END if after_end else expected[position].argmax())
        ended.add(END in ids[0].tolist())
    assert ended == {True, False}, "the test is to see texts that end and texts that are cut"


@pytest.mark.parametrize("config", STRATEGIES)
def test_scores_are_sums_of_the_models_log_probabilities(outspoken, context, config):
    found = generate(outspoken, "a", context, BEGIN, END, config)
    assert found.ids.shape[:2] == (6, config.captions)
    assert (found.scores.diff(dim=1) <= 0).all()
    for item, caption in itertools.product(range(6), range(config.captions)):
        ids = found.ids[item, caption]
        own = whole_text_log_probs(outspoken, one(context, item), ids[None])[0].gather(1, ids[1:, None])[:, 0]
        ends = (ids[1:] == END).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(ids) - 1
        torch.testing.assert_close(found.log_probs[item, caption, :length], own[:length], rtol=1e-4, atol=1e-5)
        assert (ids[1 + length :] == END).all()
        assert (found.log_probs[item, caption, length:] == 0).all()
        torch.testing.assert_close(found.scores[item, caption], own[:length].sum() / length, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", STRATEGIES)
def test_an_item_gets_the_same_captions_alone_and_in_a_batch(outspoken, context, config):
    together = generate(outspoken, "a", context, BEGIN, END, config)
    for item in range(6):
        alone = generate(outspoken, "a", one(context, item), BEGIN, END, config)
        length = alone.ids.shape[-1]
        assert torch.equal(alone.ids[0], together.ids[item, :, :length])
        assert (together.ids[item, :, length:] == END).all()
        torch.testing.assert_close(alone.scores[0], together.scores[item], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_beam_wide_enough_finds_the_best_of_all_texts(outspoken, context, length_penalty):
    words, longest = (3, 4, 5, 6), 3
    banned = tuple(set(range(VOCAB)) - {*words, END, BEGIN})
    config = DecodingConfig(
        "beam", captions=5, num_beams=len(words) ** longest, length_penalty=length_penalty, max_length=longest + 2
    )
    found = generate(outspoken, "a", context, BEGIN, END, config, banned)
    for item in range(6):
        scored = []
        for length in range(longest + 2):
            for text in itertools.product(words, repeat=length):
                ids = torch.tensor([[BEGIN, *text] + ([END] if length <= longest else [])])
                own = whole_text_log_probs(outspoken, one(context, item), ids)[0].gather(1, ids[0, 1:, None])
                scored.append((float(own.sum()) / (ids.shape[1] - 1) ** length_penalty, ids[0].tolist()))
        scored.sort(reverse=True)
        for caption, (score, ids) in enumerate(scored[:5]):
            assert found.scores[item, caption].item() == pytest.approx(score, rel=1e-4)
            assert found.ids[item, caption, : len(ids)].tolist() == ids


def test_one_beam_is_at_least_as_good_as_greedy(outspoken, context):
    greedy = generate(outspoken, "a", context, BEGIN, END)
    beam = generate(outspoken, "a", context, BEGIN, END, DecodingConfig("beam", num_beams=1))
    assert (beam.scores >= greedy.scores - 1e-6).all()


def test_samples_follow_the_models_distribution(outspoken, context):
    config = DecodingConfig("sample", captions=4000, max_length=2)
    found = generate(outspoken, "a", one(context, 0), BEGIN, END, config)
    expected = whole_text_log_probs(outspoken, one(context, 0), torch.tensor([[BEGIN, END]]))[0, 0].exp()
    expected[BEGIN] = 0
    share = torch.bincount(found.ids[0, :, 1], minlength=VOCAB) / 4000
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((share - expected / expected.sum()).abs() < 5 * error + 1e-3).all()


def test_top_k_and_top_p_keep_the_likeliest(outspoken, context):
    first = whole_text_log_probs(outspoken, one(context, 0), torch.tensor([[BEGIN, END]]))[0, 0].exp()
    first[BEGIN] = 0
    likely, order = (first / first.sum()).sort(descending=True)
    for settings, count in (({"top_k": 3}, 3), ({"top_p": 0.5}, int((likely.cumsum(0) < 0.5).sum()) + 1)):
        config = DecodingConfig("sample", captions=2000, max_length=2, **settings)
        drawn = generate(outspoken, "a", one(context, 0), BEGIN, END, config).ids[0, :, 1]
        assert set(drawn.tolist()) == set(order[:count].tolist())


def test_a_seed_repeats_and_another_does_not(outspoken, context):
    def sample(seed: int) -> Generated:
        return generate(outspoken, "a", context, BEGIN, END, DecodingConfig("sample", captions=2, seed=seed))

    assert torch.equal(sample(3).ids, sample(3).ids)
    assert not torch.equal(sample(3).ids[:, 0, 1:5], sample(4).ids[:, 0, 1:5])
    assert not torch.equal(sample(3).ids[:, 0, :5], sample(3).ids[:, 1, :5])


@pytest.mark.parametrize("strategy", ["greedy", "beam", "sample"])
def test_length_bounds_and_banned_tokens_hold(outspoken, context, strategy):
    config = DecodingConfig(strategy, min_length=4, max_length=8)
    favourite = int(generate(outspoken, "a", context, BEGIN, END).ids[0, 0, 1])
    ids = generate(outspoken, "a", context, BEGIN, END, config, banned=(favourite,)).ids
    assert ids.shape[-1] <= 8
    assert not (ids[..., 1:5] == END).any()
    assert not (ids == favourite).any()
    assert not (ids[..., 1:] == BEGIN).any()


def test_memory_is_computed_once_and_shared_by_the_beams(outspoken, context):
    state = outspoken.text.begin(context, 12)
    outspoken.next_token_logits("a", torch.ones(24, 1, dtype=torch.long), state)
    kept = [layer.memory for layer in state.multimodal]
    assert all(len(part) == 6 for memory in kept for part in memory)
    outspoken.next_token_logits("a", torch.ones(24, 1, dtype=torch.long), state)
    assert all(layer.memory is memory for layer, memory in zip(state.multimodal, kept, strict=True))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"strategy": "best"}, "choose one of greedy, beam, sample"),
        ({"captions": 2}, "from 1 to 1"),
        ({"strategy": "beam", "captions": 7}, "from 1 to 6"),
        ({"strategy": "sample", "top_p": 0.0}, "0 < top_p <= 1"),
        ({"strategy": "sample", "temperature": 0.0}, "temperature > 0"),
        ({"min_length": 5, "max_length": 6}, "at least 2 above"),
    ],
)
def test_bad_settings_are_named(settings, reason):
    with pytest.raises(ValueError, match=reason):
        DecodingConfig(**settings)


def test_a_text_longer_than_the_context_length_is_refused(outspoken, context):
    with pytest.raises(ValueError, match="context length, 12"):
        generate(outspoken, "a", context, BEGIN, END, DecodingConfig(max_length=13))
    state = outspoken.text.begin(context, 4)
    outspoken.text.extend(torch.ones(6, 2, dtype=torch.long), state)
    with pytest.raises(ValueError, match="only the first call"):
        outspoken.text.extend(torch.ones(6, 2, dtype=torch.long), state)
    state = outspoken.text.begin(context, 4)
    with pytest.raises(ValueError, match="5 tokens, more than the 4"):
        outspoken.text.extend(torch.ones(6, 5, dtype=torch.long), state)
