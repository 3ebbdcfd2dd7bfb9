"""Scripts without spaces: the ranges are those of Unicode, and characters are split whole."""

import sys
import unicodedata

import pytest
from tokenizers import Regex, pre_tokenizers

from multicoca.text.scripts import UNSPACED_SCRIPTS, character_starts, split_unspaced, unspaced_scripts

LETTERS = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


def letters_of(script: str) -> set[str]:
    split = pre_tokenizers.Split(Regex(rf"\p{{{script}}}"), behavior="removed", invert=True)
    return {letter for letter, _ in split.pre_tokenize_str("".join(LETTERS))}


@pytest.mark.parametrize("script", UNSPACED_SCRIPTS)
def test_ranges_are_those_of_unicode(script):
    expected = letters_of(script)
    found = {letter for letter in LETTERS if script in unspaced_scripts(letter)}
    assert len(expected) > 60
    assert expected <= found
    names = {"Han": ("CJK", "KANGXI", "IDEOGRAPHIC", "HANGZHOU", "VIETNAMESE", "OLD CHINESE", "MASU")}
    prefixes = names.get(script, (script.upper(), "HALFWIDTH", "SQUARE", "CIRCLED", "KATAKANA-HIRAGANA", "VERTICAL"))
    strange = [letter for letter in found - expected if not unicodedata.name(letter).startswith(prefixes)]
    assert strange == []


@pytest.mark.parametrize("text", ["a red cube", "ein größerer Würfel", "빨간 공", "красный", "🙂 ½ ...", ""])
def test_other_scripts_stay_whole(text):
    assert split_unspaced(text) == [(text, False)]
    assert unspaced_scripts(text) == []


def test_characters_keep_their_marks():
    assert split_unspaced("a ที่ cube") == [("a ", False), ("ที่", True), (" cube", False)]
    assert [part for part, _ in split_unspaced("ខ្មែរကမ္ဘာ")] == ["ខ្មែ", "រ", "က", "မ္ဘာ"]
    assert split_unspaced("葛\U000e0100。") == [("葛\U000e0100", True), ("。", False)]
    assert unspaced_scripts("a 赤い cube ကမ္ဘာ") == ["Han", "Hiragana", "Myanmar"]


def test_starts_are_those_of_grapheme_clusters():
    assert character_starts("") == {0}
    assert character_starts("a👨\u200d👩\u200d👧b") == {0, 1, 6, 7}
    assert character_starts("🇩🇪🇫🇷") == {0, 2, 4}
    assert character_starts("e\u0301ที่红") == {0, 2, 5, 6}
