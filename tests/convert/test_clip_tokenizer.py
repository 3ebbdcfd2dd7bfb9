"""CLIP's tokenizer as a tokenizer.json gives open_clip's ids."""

import random
import unicodedata
import warnings

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from multicoca.convert.clip_tokenizer import clip_tokenizer
from multicoca.text.tokenizer import TextTokenizer

HOSTILE = [
    "",
    "   ",
    "a photo of a cat",
    "IT'S we'll I'D don't 'quoted'",
    "!$ hello!$ world!! #!@",
    "&lt;b&gt; &amp;amp; caf&eacute; &#x27;s don&#39;t",
    "ſ'ſ it'ſ",
    "naïve Ünïcödé ΑΣ ς Σ İstanbul DŽ ﬁ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "日本語のテキスト。 한국어 العربية עברית हिन्दी",
    "\u200b zero\u200bwidth \x00\x01 control",
    "Ã©tait cassÃ©",
    "tabs\tand\nnew\r\nlines\u2003wide",
    "<start_of_text> x <end_of_text> <END_OF_TEXT>",
    "1234567890 ½ ² ٣ 3.14e-10",
    "a" * 500,
    "word " * 200,
]


def corpus() -> list[str]:
    """Returns the texts above and random ones of all assigned letters, signs and pictures."""
    generator = random.Random(0)
    ranges = [(32, 127), (32, 0x300), (0x20, 0xD800), (0xE000, 0x1FFFF)]
    texts = list(HOSTILE)
    for _ in range(1000):
        letters = (chr(generator.randrange(*generator.choice(ranges))) for _ in range(generator.randrange(1, 30)))
        texts.append("".join(letter for letter in letters if unicodedata.category(letter) != "Cn"))
    return texts


@pytest.mark.filterwarnings("ignore:a text has")
def test_ids_are_open_clips_on_a_hostile_corpus(tmp_path):
    tokenizer, reference = clip_tokenizer(76), SimpleTokenizer(context_length=76)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer.json", 76, "clip")
    texts = corpus()
    ids, lengths = tokenizer(texts)
    expected = reference(texts)
    wrong = [text for text, got, row in zip(texts, ids, expected, strict=True) if not torch.equal(got, row)]
    assert ids.shape == expected.shape
    assert wrong == []
    first = HOSTILE.index("a photo of a cat")
    assert int(lengths[first]) == 7


def test_special_ids_and_texts_are_open_clips():
    tokenizer, reference = clip_tokenizer(76), SimpleTokenizer()
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id) == (49406, 49407, 0)
    assert tokenizer.never_written == (49406,)  # padding is also the word piece "!"
    assert tokenizer.vocab_size == 49408
    text = "a café, 日本 & the cat's !$ hat"
    assert tokenizer.decode(tokenizer([text])[0][:, 1:]) == [reference.decode(reference.encode(text)).strip()]


def test_a_cut_text_is_said_once():
    tokenizer = clip_tokenizer(16)
    with pytest.warns(UserWarning, match="cut to 14"):
        ids, lengths = tokenizer(["word " * 50])
    assert ids[0, -1] == tokenizer.end_id
    assert lengths.tolist() == [16]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["word " * 50])
