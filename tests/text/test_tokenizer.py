"""The tokenizer: round trips, lengths, truncation that keeps the end."""

import pytest
from tokenizers import Tokenizer, models

from multicoca.text.tokenizer import TextTokenizer

TEXTS = ["a red ball", "a blue cube left of a red ball", "naïve café — ok!"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.learn(TEXTS * 3, vocab_size=400, context_length=16)


@pytest.mark.parametrize("text", [*TEXTS, "never seen: 東京 🙂", ""])
def test_texts_come_back(tokenizer, text):
    longer = TextTokenizer(Tokenizer.from_str(tokenizer.to_json()), 200)
    ids, lengths = longer([text])
    assert longer.decode(ids[:, 1 : lengths[0]]) == [text.lower()]


def test_each_row_starts_ends_and_is_padded(tokenizer):
    ids, lengths = tokenizer(TEXTS[:2])
    assert ids.shape[1] >= int(lengths.max())
    assert ids.shape[1] % 8 == 0
    assert ids[:, 0].tolist() == [tokenizer.begin_id] * 2
    assert [int(row[length - 1]) for row, length in zip(ids, lengths, strict=True)] == [tokenizer.end_id] * 2
    assert (ids[0, lengths[0] :] == tokenizer.pad_id).all()
    assert len({tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id}) == 3


def test_a_long_text_is_cut_and_keeps_its_end(tokenizer):
    ids, lengths = tokenizer(["a red ball " * 40])
    assert ids.shape == (1, 16)
    assert lengths.tolist() == [16]
    assert int(ids[0, -1]) == tokenizer.end_id


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json", 16)
    assert loaded(TEXTS)[0].tolist() == tokenizer(TEXTS)[0].tolist()


def test_missing_files_and_special_tokens_are_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        TextTokenizer.load(tmp_path / "none.json", 8)
    with pytest.raises(ValueError, match="0 tokens of an empty text"):
        TextTokenizer(Tokenizer(models.BPE()), 8)
