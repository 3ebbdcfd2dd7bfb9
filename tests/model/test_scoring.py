"""log P(text | item): what teacher forcing gives, whatever shares the batch, each context read once."""

import math

import pytest
import torch
from conftest import VOCAB, VectorEncoder, small_model

from multicoca.eval.zero_shot import classification_accuracy, likelihood_scores
from multicoca.model.bundle import Bundle
from multicoca.model.coca import CoCa
from multicoca.model.config import ModelConfig
from multicoca.model.generate import DecodingConfig, generate
from multicoca.nn.attention import CrossAttention
from multicoca.text.tokenizer import TextTokenizer
from multicoca.tokens import Tokens

TEXTS = ["a red cube", "a blue ball on a box", "nothing"]


@pytest.fixture
def context(model) -> Tokens:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return model.encode("a", {"x": 3 * torch.randn(5, 7, 6, generator=generator)})[0]


@pytest.fixture
def texts() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(4)), torch.tensor([9, 4, 2])


@pytest.fixture
def bundle() -> Bundle:
    tokenizer = TextTokenizer.learn(TEXTS * 3, 300, 16)
    config = ModelConfig(
        width=32, num_heads=4, mlp_width=64, unimodal_layers=1, multimodal_layers=1, embedding_width=16, num_queries=4,
        context_length=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return Bundle(CoCa(config, {"a": VectorEncoder()}, tokenizer.vocab_size).eval(), tokenizer, {})


@torch.no_grad()
def test_scores_are_sums_of_teacher_forced_log_probabilities(model, context, texts):
    ids, lengths = texts
    found = model.log_probs("a", context, ids, lengths)
    assert found.shape == (5, 3)
    for item in range(5):
        for text in range(3):
            own = ids[text : text + 1, : lengths[text]]
            hidden = model.text.multimodal(
                model.text.unimodal(own, lengths[text : text + 1])[0], Tokens(context.values[item : item + 1])
            )
            logs = model.heads["a"].caption_head(hidden)[0].log_softmax(dim=-1)
            expected = sum(float(logs[place, own[0, place + 1]]) for place in range(len(own[0]) - 1))
            assert float(found[item, text]) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_written_caption_scores_what_it_was_written_with(model, context):
    written = generate(model, "a", context, 1, 2, DecodingConfig("sample", captions=2, max_length=8))
    for item in range(5):
        for text, log_probs in zip(written.ids[item], written.log_probs[item], strict=True):
            ended = (text == 2).nonzero()
            length = int(ended[0]) + 1 if len(ended) else len(text)
            found = model.log_probs("a", Tokens(context.values[[item]]), text[None], torch.tensor([length]))
            assert float(found) == pytest.approx(float(log_probs.sum()), rel=1e-4)


@torch.no_grad()
def test_each_context_is_read_once(model, context, texts, monkeypatch):
    rows = []
    plain = CrossAttention.keys_values
    monkeypatch.setattr(CrossAttention, "keys_values", lambda self, c: rows.append(len(c)) or plain(self, c))
    model.log_probs("a", context, *texts)
    assert rows == [5] * model.config.multimodal_layers


def test_a_bundle_scores_texts_in_any_number(bundle):
    context, _ = bundle.encode("a", {"x": torch.randn(200, 7, 6)})
    found = bundle.score("a", context, TEXTS)  # too many rows for one call
    assert found.shape == (200, 3)
    alone = torch.cat([bundle.score("a", Tokens(context.values[:2]), [text]) for text in TEXTS], dim=1)
    torch.testing.assert_close(found[:2], alone, rtol=1e-4, atol=1e-4)


def test_reranking_orders_by_similarity_and_changes_no_caption(bundle):
    context, embeddings = bundle.encode("a", {"x": torch.randn(3, 7, 6)})
    plain = bundle.write("a", context, embeddings, DecodingConfig("sample", captions=6))
    ranked = bundle.write("a", context, embeddings, DecodingConfig("sample", captions=6, rerank=True))
    for before, after, embedding in zip(plain, ranked, embeddings, strict=True):
        assert sorted(caption.text for caption in before) == sorted(caption.text for caption in after)
        similarities = [caption.similarity for caption in after]
        assert similarities == sorted(similarities, reverse=True)
        assert similarities[0] > similarities[-1]
        assert similarities[0] == pytest.approx(float(bundle.embed_text([after[0].text])[0] @ embedding), abs=1e-5)
        assert before[0].similarity is None


def test_log_probabilities_of_a_caption_add_up_to_its_score(bundle):
    context, embeddings = bundle.encode("a", {"x": torch.randn(4, 7, 6)})
    for own in bundle.write("a", context, embeddings, DecodingConfig("sample", captions=3, length_penalty=0.0)):
        for caption in own:
            assert sum(caption.log_probs) == pytest.approx(caption.score, rel=1e-4)
            assert 1 <= len(caption.log_probs) <= 15


def test_class_likelihoods_add_up_over_templates_by_hand():
    known = {"a cat": 0.1, "the cat": 0.3, "a dog": 0.2, "the dog": 0.05}
    scores = likelihood_scores(
        lambda texts: torch.tensor([[math.log(known[text]) for text in texts]]), ["cat", "dog"], ["a {}", "the {}"]
    )
    torch.testing.assert_close(scores, torch.tensor([[math.log(0.4), math.log(0.25)]]))
    assert classification_accuracy(scores, torch.tensor([0]))["top1"] == 1
    assert classification_accuracy(scores, torch.tensor([1]))["top1"] == 0


def test_shared_pooler_and_open_clips_blocks_score_as_they_write():
    model = small_model(
        pooler="shared", cls_mask="open_clip", multimodal_block="open_clip", source_width=24, adapters="where_needed",
        pooler_heads=2, caption_heads="shared",
    ).eval()  # fmt: skip
    with torch.no_grad():
        context = model.encode("a", {"x": torch.randn(3, 7, 6)})[0]
        written = generate(model, "a", context, 1, 2, DecodingConfig("beam", num_beams=3, captions=1, max_length=9))
        for item in range(3):
            text, log_probs = written.ids[item, 0], written.log_probs[item, 0]
            ended = (text == 2).nonzero()
            length = int(ended[0]) + 1 if len(ended) else len(text)
            found = model.log_probs("a", Tokens(context.values[[item]]), text[None], torch.tensor([length]))
            assert float(found) == pytest.approx(float(log_probs.sum()), rel=1e-4)
