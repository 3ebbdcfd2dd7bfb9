import math
import shutil

import pytest

from multicoca import reading
from multicoca.eval import captioning
from multicoca.eval.captioning import caption_metrics, tokenize

GENERATED = ["a red ball on the left", "a blue cube", "there is a small green cone at the top"]
REFERENCES = [
    ["a red ball on the left", "on the left is a red ball"],
    ["a large blue ring", "a blue ring at the top"],
    ["a small green cone at the top", "there is a small green cone on the right"],
]


@pytest.mark.parametrize(
    ("caption", "words"),
    [  # what pycocoevalcap's Java tokenizer gives
        (
            "A man can't ride, won't he? It's gonna rain... Don't!",
            "a man ca n't ride wo n't he it 's gon na rain do n't",
        ),
        (
            "the U.S.A. flag (red) costs $5.50 & 10% more/less",
            "the u.s.a. flag -lrb- red -rrb- costs $ 5.50 & 10 % more/less",
        ),
        ('a well-known T-shirt: "STOP" sign; 1,000 people -- yes', "a well-known t-shirt stop sign 1,000 people yes"),
        (
            "a 3-year-old boy at 12:30 p.m. with a 50mm lens on a street.",
            "a 3-year-old boy at 12:30 p.m. with a 50mm lens on a street",
        ),
        ("caf\u00e9 na\u00efve\u2019s \u201cquoted\u201d text", "caf\u00e9 na\u00efve 's quoted text"),
        ("they cannot couldn't've Mr. r&b", "they can not could n't 've mr. r & b"),
        ("   .", ""),
    ],
)
def test_words_are_split_as_the_penn_treebank_does(caption, words):
    assert tokenize(caption) == words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("大红色圆，在左边。「好」……对吗？！", "大 红 色 圆 在 左 边 好 对 吗"),
        ("一个 红色cube's 3.5米（大）：a；b、c", "一 个 红 色 cube 's 3.5 米 -lrb- 大 -rrb- a b c"),
        ("赤いボール。ｶﾞｰﾙ か\u3099", "赤 い ボ ー ル ガ ー ル が"),
        ("ลูกบอลสีแดง red ที่นี่", "ลู ก บ อ ล สี แ ด ง red ที่ นี่"),
        ("ບານ\u200bສີແດງ", "ບ າ ນ ສີ ແ ດ ງ"),
        ("ក្រហម\u200bខ្មែរ។", "ក្រ ហ ម ខ្មែ រ"),
        ("မြန်မာကမ္ဘာ၊ စာ။", "မြ န် မာ က မ္ဘာ စာ"),
        ("𠮷 葛\U000e0100", "𠮷 葛\U000e0100"),
        ("빨간 공이 왼쪽에 있다.", "빨간 공이 왼쪽에 있다"),
        ("\ud800 a \ud83d ball", "a ball"),
    ],
)
def test_scripts_without_spaces_are_split_by_character(caption, words):
    assert tokenize(caption) == words


def test_a_perfect_chinese_caption_scores_one_and_the_result_names_the_script():
    pytest.importorskip("pycocoevalcap")
    captions = ["一个大红色圆在左边", "一个小蓝色方块在上面", "大红色圆"]
    scores = caption_metrics(captions, [[f"{caption}。"] for caption in captions])
    assert scores["bleu4"] == pytest.approx(1)
    assert scores["rouge_l"] == 1
    assert scores["cider_d"] == pytest.approx(10)
    assert scores["notes"] == ["BLEU, ROUGE-L, CIDEr-D and METEOR count characters, not words, of Han"]
    mixed = caption_metrics(["赤いボール", "ลูกบอล", "a ball"], [["赤い玉"], ["ลูกบอล"], ["a ball"]])
    assert mixed["notes"][0].endswith("of Han, Hiragana, Katakana and Thai")


def test_one_wrong_chinese_character_of_ten_costs_a_tenth():
    pytest.importorskip("pycocoevalcap")
    scores = caption_metrics(["一个大红色圆在左边呢"], [["一个大红色圆在右边呢"]])
    assert scores["rouge_l"] == pytest.approx(0.9)
    # 9 of 10 characters, 7 of 9 pairs, 5 of 8 threes, 4 of 7 fours
    assert scores["bleu4"] == pytest.approx((9 / 10 * 7 / 9 * 5 / 8 * 4 / 7) ** 0.25)


@pytest.mark.parametrize(
    ("caption", "reference"),
    [
        ("一个大 红色圆", "一个大红色圆"),
        ("大红色圆,在左边!", "大红色圆，在左边！"),
        ("红色 Cube", "红色cube"),
        ("か\u3099 ｶﾞ", "がガ"),
        ("ក្រហម\u200bធំ", "ក្រហមធំ"),
        ("cafe\u0301", "café"),
    ],
)
def test_exact_match_takes_spellings_of_one_text_as_equal(caption, reference):
    assert caption_metrics([caption], [[reference]])["exact_match"] == 1
    assert caption_metrics([caption], [[reference + "x"]])["exact_match"] == 0


def test_exact_match_ignores_case_and_white_space_only():
    scores = caption_metrics(["A  red ball", "a red ball.", ""], [["a red ball"], ["a red ball"], ["x"]])
    assert scores["exact_match"] == pytest.approx(1 / 3)
    scores = caption_metrics(["x", "y"], [["a"], ["b"]], is_right=lambda index, caption: (index, caption) == (1, "y"))
    assert scores["exact_match"] == 0.5


def test_scores_equal_the_reference_package():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    truth, answers = dict(enumerate(REFERENCES)), {i: [caption] for i, caption in enumerate(GENERATED)}
    scores = caption_metrics(GENERATED, REFERENCES)
    assert scores["bleu4"] == pytest.approx(bleu.compute_score(truth, answers, verbose=0)[0][3])
    assert scores["cider_d"] == pytest.approx(cider.compute_score(truth, answers)[0])
    assert (scores["used"], scores["notes"]) == (3, [])


def test_scores_by_hand():
    pytest.importorskip("pycocoevalcap")
    # ROUGE-L, beta 1.2: the best precision and recall over the references, here 2/3 and 2/4 from "a ... blue"
    rouge = caption_metrics(["a blue cube"], [["a large blue ring"]])["rouge_l"]
    assert rouge == pytest.approx((1 + 1.44) * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3))
    # BLEU-4 with a brevity penalty: all n-grams of the 4 words occur in the 5 words of the reference
    assert caption_metrics(["a b c d"], [["a b c d e"]])["bleu4"] == pytest.approx(math.exp(1 - 5 / 4))
    # CIDEr-D: equal to the only reference, words that no other item has: 10; nothing in common: 0
    assert caption_metrics(["a b c d", "x y"], [["a b c d"], ["p q"]])["cider_d"] == pytest.approx(5)


def test_cider_has_the_length_penalty_and_clipping_of_cider_d():
    pytest.importorskip("pycocoevalcap")
    references = [["a b c d"], ["p q r s"]]
    repeated = caption_metrics(["a b c d a b c d", "p q r s"], references)["cider_d"] - 5
    # over n: cosine with clipping, 4 / (2 * 4) for words; bigrams of the repetition: 2, 2, 2 and d a once; ...
    clipped = [4 / math.sqrt(16 * 4), 3 / math.sqrt(13 * 3), 2 / math.sqrt(10 * 2), 1 / math.sqrt(7)]
    # n-grams across the seam (d a, c d a, ...) weigh log 2, as all others do; lengths differ by 4 bigrams
    assert repeated == pytest.approx(5 * sum(clipped) / 4 * math.exp(-(4**2) / (2 * 36)))


def test_nothing_is_printed_and_empty_captions_score_zero(capsys):
    pytest.importorskip("pycocoevalcap")
    scores = caption_metrics(["", ""], [["a red ball"], ["a cube"]])
    assert scores["bleu4"] == pytest.approx(0, abs=1e-9)
    assert (scores["rouge_l"], scores["cider_d"]) == (0, 0)
    assert capsys.readouterr().out == ""


def test_a_single_item_gives_no_cider_and_a_note():
    pytest.importorskip("pycocoevalcap")
    scores = caption_metrics(["a red ball"], [["a red ball"]])
    assert scores["cider_d"] == 0
    assert "single item" in scores["notes"][0]


def test_without_the_package_exact_match_remains(monkeypatch):
    def missing(package):
        raise ImportError(f"No module named '{package}'")

    monkeypatch.setattr(reading.importlib, "import_module", missing)
    scores = caption_metrics(["a"], [["a"]])
    assert set(scores) == {"exact_match", "used", "notes"}
    assert "pip install 'multicoca[eval]'" in scores["notes"][0]


def test_meteor_without_java_is_left_out_with_a_note(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(captioning.shutil, "which", lambda program: None)
    scores = caption_metrics(["a", "b"], [["a"], ["b"]], meteor=True)
    assert "meteor" not in scores
    assert "java" in scores["notes"][0]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
def test_meteor_is_computed_where_there_is_java_and_takes_empty_captions():
    pytest.importorskip("pycocoevalcap")
    scores = caption_metrics(["", "a blue ring at the top", ""], REFERENCES, meteor=True)
    assert 0.1 < scores["meteor"] < 0.9
    assert scores["notes"] == []


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="got 0 captions"):
        caption_metrics([], [])
    with pytest.raises(ValueError, match="1 of 2 items have no reference"):
        caption_metrics(["a", "b"], [["a"], []])
