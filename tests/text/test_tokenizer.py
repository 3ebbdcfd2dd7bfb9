"""The tokenizer: round trips, lengths, truncation that keeps the end, scripts without spaces."""

import itertools
import random
import sys
import unicodedata
import warnings

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from multicoca.convert.clip_tokenizer import clip_tokenizer
from multicoca.text.scripts import count_words
from multicoca.text.tokenizer import TextTokenizer, enclose

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


PHRASES = {  # size, colour, shape, place: written in this order, without spaces
    "Chinese": (
        "一个小|一个大|一个中等",
        "红色|绿色|蓝色|黄色|紫色",
        "圆形|方块|三角形|十字",
        "在左边|在右边。|在上面|在下面",
    ),
    "Japanese": (
        "小さな|大きな|ちっちゃい",
        "赤い|緑色の|ブルーの|黄色い|紫の",
        "円|四角形|ボール|十字",
        "が左に|が右に。|が上に|が下に",
    ),
    "Thai": (
        "วงกลม|สี่เหลี่ยม|สามเหลี่ยม",
        "สีแดง|สีเขียว|สีน้ำเงิน|สีเหลือง|สีม่วง",
        "ขนาดเล็ก|ขนาดใหญ่|ขนาดกลาง|ยักษ์",
        "อยู่ซ้าย|อยู่ขวา|ด้านบน|ด้านล่าง",
    ),
    "Lao": ("ວົງມົນ|ສີ່ຫຼ່ຽມ|ສາມຫຼ່ຽມ", "ສີແດງ|ສີຂຽວ|ສີຟ້າ|ສີເຫຼືອງ|ສີມ່ວງ", "ນ້ອຍ|ໃຫຍ່|ກາງ|ໃຫຍ່ຫຼາຍ", "ຢູ່ຊ້າຍ|ຢູ່ຂວາ|ຢູ່ເທິງ|ຢູ່ລຸ່ມ"),
    "Khmer": ("រង្វង់|ការ៉េ|ត្រីកោណ", "ក្រហម|បៃតង|ខៀវ|លឿង|ស្វាយ", "តូច|ធំ|មធ្យម|ធំណាស់", "នៅឆ្វេង|នៅស្តាំ|នៅលើ|នៅក្រោម។"),
    "Burmese": (
        "အနီရောင်|အစိမ်းရောင်|အပြာရောင်",
        "စက်ဝိုင်း|စတုရန်း|တြိဂံ|ကြက်ခြေခတ်|ဘောလုံး",
        "အသေး|အကြီး|အလတ်|ဧရာမ",
        "ဘယ်ဘက်|ညာဘက်|အပေါ်|အောက်။",
    ),
}


@pytest.mark.parametrize("language", PHRASES)
def test_unseen_sentences_of_seen_words_need_no_more_tokens(language):
    sizes, colors, shapes, places = (phrases.split("|") for phrases in PHRASES[language])
    split = {True: [], False: []}
    for (a, color), (b, shape), place, size in itertools.product(enumerate(colors), enumerate(shapes), places, sizes):
        split[a % len(shapes) == b].append(size + color + shape + place)
    seen, unseen = split[False], split[True]
    tokenizer = TextTokenizer.learn(seen * 5, 4000, 400)
    per_character = [
        (int(tokenizer(texts)[1].sum()) - 2 * len(texts)) / sum(map(len, texts)) for texts in (seen, unseen)
    ]
    assert per_character[1] / per_character[0] <= 1.05
    assert per_character[0] <= 1  # a character that was seen is one token
    assert [tokenizer.decode(tokenizer([text])[0][:, 1:])[0] for text in unseen] == unseen


def pieces(tokenizer: TextTokenizer, text: str) -> list[str]:
    ids, lengths = tokenizer([text])
    return [tokenizer.decode(ids[:, place : place + 1])[0] for place in range(1, int(lengths[0]) - 1)]


def test_characters_with_their_marks_are_pieces_and_words_of_other_scripts_stay():
    texts = ["大红球，a red cube", "ที่นี่ 3个", "က္ကမ္ဘာ", "빨간 공이 왼쪽에", "ガール々〆〇", "𠮷葛\U000e0100"]
    tokenizer = TextTokenizer.learn(texts * 5, 2000, 100)
    assert pieces(tokenizer, "红大,") == ["红", "大", ","]
    assert pieces(tokenizer, "红 cube") == ["红", "cube"]
    assert pieces(tokenizer, "ที่ที่ 3") == ["ที่", "ที่", "3"]
    assert pieces(tokenizer, "မ္ဘာ") == ["မ္ဘာ"]
    assert pieces(tokenizer, "공이 왼쪽에")[1:] == ["왼쪽에"]
    assert pieces(tokenizer, "〇ガ〆ー") == ["〇", "ガ", "〆", "ー"]
    assert pieces(tokenizer, "葛\U000e0100𠮷") == ["葛\U000e0100", "𠮷"]


MIXED = [
    "a 红色 cube",
    "红色的 cube在left边",
    "Ａ。「红」，3个！",
    "赤いボールー々〆 ｶﾞｰﾙ",
    "สีแดง ที่ red",
    "ខ្មែរ\u200bក្រហម។",
    "မြန်မာ ကမ္ဘာ",
    "빨간 공 漢字 한글",
    "👨\u200d👩\u200d👧红👍🏽🇩🇪",
    "𠮷\U000323af葛\U000e0100",
    "红  色\n圆",
]


@pytest.mark.parametrize("text", MIXED)
@pytest.mark.parametrize("learned_from", [[], MIXED])
def test_mixed_texts_come_back_as_they_were(text, learned_from):
    tokenizer = TextTokenizer.learn(learned_from * 3, 1500, 200)
    loaded = TextTokenizer(Tokenizer.from_str(tokenizer.to_json()), 200)
    ids, lengths = loaded([text])
    assert loaded.decode(ids[:, 1 : lengths[0]]) == [text.lower()]
    assert ids.tolist() == tokenizer([text])[0].tolist()


def without_characters(texts: list[str], vocab_size: int = 900) -> TextTokenizer:
    """Learns a tokenizer as before scripts without spaces were split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<bos>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    enclose(tokenizer, "<bos>", "<eos>", "<pad>")
    return TextTokenizer(tokenizer, 100)


SPACED = [
    "A red ball  isn't  left of the blue cube's edge, 12.5 cm.",
    "Ein größerer roter Würfel liegt links vom Ball — schön!",
    "큰 빨간색 공이 파란색 상자 왼쪽에 있다.",
    " красный шар, קובייה אדום مكعب लाल गेंद",
    "\ttabs and\nlines \u2003 wide … 🙂👨\u200d👩\u200d👧 ½ e\u0301",
    "",
    "   ",
]


def test_scripts_with_spaces_have_the_ids_that_they_had():
    old, new = without_characters(SPACED * 4), TextTokenizer.learn(SPACED * 4, 900, 100)
    generator = random.Random(0)
    letters = "".join(SPACED)
    texts = SPACED + ["".join(generator.choices(letters, k=generator.randrange(30))) for _ in range(300)]
    assert new.vocab_size == old.vocab_size > 450
    assert new(texts)[0].tolist() == old(texts)[0].tolist()


CHARACTERS = {  # one by one, split by hand
    "Chinese": "龘 靐 齉 爩 麤 灪 龗 厵 癵 籱 𠮷 葛\U000e0100",
    "Thai": "ที่ น้ำ ผู้ ใ ห ญ่ เ ปี๊ ย ก",
    "Lao": "ສີ່ ຫຼ່ ຽ ມ ນ້ຳ",
    "Khmer": "ខ្មែ រ ស្ត្រី ក្រ ហ ម",
    "Burmese": "က မ္ဘာ မြ န် မာ စ ကား",
    "emoji": "🙂 👍🏽 👨\u200d👩\u200d👧 🇩🇪 🇫🇷 1\ufe0f\u20e3",
    "marks": "n q\u0301\u0323 x\u0301\u0302\u0303 o क् षि णी",
    "mixed": "a 红 b a l l 🙂 ที่",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, TextTokenizer]:
    """Tokenizers with pieces of several characters, of one, and of less than one, and CLIP's."""
    texts = ["".join(characters.split()) for characters in CHARACTERS.values()]
    return {
        "learned": TextTokenizer.learn(texts * 3, 700, 100),
        "words": without_characters([texts[1] * 2, *texts], 600),
        "bytes": TextTokenizer.learn([], 300, 100),
        "CLIP": clip_tokenizer(100),
    }


@pytest.mark.filterwarnings("ignore:a text has")
@pytest.mark.parametrize("kind", ["learned", "words", "bytes", "CLIP"])
@pytest.mark.parametrize("script", CHARACTERS)
def test_a_long_text_is_cut_at_the_end_of_a_character(script, kind, tokenizers):
    characters, tokenizer, parts = CHARACTERS[script].split() * 12, tokenizers[kind], set()
    ends = {unicodedata.normalize("NFC", "".join(characters[:count])) for count in range(len(characters))}
    for tokenizer.context_length in range(22, 60):
        ids, count = tokenizer(["".join(characters)])
        assert int(ids[0, count[0] - 1]) == tokenizer.end_id
        parts.add(tokenizer._tokenizer.decode(ids[0, 1 : count[0] - 1].tolist()).replace(" ", ""))
    assert parts <= ends - {""}
    assert len(parts) > 1


@pytest.mark.filterwarnings("ignore:a text has")
def test_a_character_that_does_not_fit_is_cut_at_a_code_point_or_left_out(tokenizers):
    tokenizer = tokenizers["bytes"]
    expected = {3: "", 6: "", 7: "🙂", 10: "🙂\u0301", 13: "🙂\u0301\u0302\u0303"}  # bytes: 1 space, 4, 2, 2, 2
    for tokenizer.context_length, text in expected.items():
        ids, count = tokenizer(["🙂" + "\u0301\u0302\u0303" * 9])
        assert tokenizer._tokenizer.decode(ids[0, 1 : count[0] - 1].tolist()).strip() == text


@pytest.mark.parametrize("ends", [True, False])
def test_an_incomplete_character_at_the_end_is_not_printed(ends):
    tokenizer = TextTokenizer.learn([], 300, 100)
    ids, lengths = tokenizer(["a 🙂"])
    row = ids[0, 1 : lengths[0] - 1]
    for missing, text in ((0, "a 🙂"), (1, "a"), (3, "a"), (4, "a")):
        cut = row[: len(row) - missing].tolist() + [tokenizer.end_id] * ends
        assert tokenizer.decode(torch.tensor([cut])) == [text]
    broken = torch.tensor([[*row[:-1].tolist(), *tokenizer(["b"])[0][0, 1:3].tolist()]])
    assert tokenizer.decode(broken) == ["a \ufffd b"]  # in the middle it stays: it shows that the model is wrong


@pytest.mark.parametrize("clean", ["none", "clip"])
def test_lone_surrogates_are_replaced(clean):
    tokenizer = TextTokenizer(
        Tokenizer.from_str(TextTokenizer.learn(["a \udc80 ball"], 400, 100).to_json()), 100, clean
    )
    ids, lengths = tokenizer(["a \ud83d red \udc00", "\ud800", "红\udfff"])
    sign = "?" if clean == "none" else "\ufffd"  # the latter is ftfy's
    assert tokenizer.decode(ids[:, 1:]) == [
        text.replace("?", sign).rstrip("\ufffd ") for text in ("a ? red ?", "?", "红?")
    ]


def test_odd_texts_are_tokens_of_whole_characters():
    tokenizer, generator = TextTokenizer.learn(MIXED, 900, 12), random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(500):
            text = "".join(chr(generator.randrange(1, sys.maxunicode)) for _ in range(generator.randrange(8)))
            text += "".join(generator.choices("".join(MIXED), k=generator.randrange(20)))
            ids, lengths = tokenizer([text])
            part = tokenizer._tokenizer.decode(ids[0, 1 : lengths[0] - 1].tolist())
            assert "\ufffd" not in part


@pytest.mark.parametrize(
    ("text", "words"), [("a red cube", 3), ("红色的球", 4), ("a 红色 cube", 4), ("", 0), ("빨간 공", 2)]
)
def test_words_are_counted_by_character_where_nothing_is_between_them(text, words):
    assert count_words(text) == words
