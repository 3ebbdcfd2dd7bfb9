"""Scripts written without spaces between words, and where their characters begin and end.

The learned tokenizer and the caption scores both use this file, so they agree on what a character is. Ranges are
written out, so that they do not depend on the Unicode version of the regular expression library.

Sources: Scripts.txt and ScriptExtensions.txt of Unicode 17.0; grapheme clusters are those of UAX #29.
"""

from __future__ import annotations

import re
from itertools import accumulate

from tokenizers import Regex, pre_tokenizers

# The insides of character classes. Signs that Scripts.txt calls Common are with the script that uses them.
UNSPACED_SCRIPTS: dict[str, str] = {
    "Han": "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3038-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00016fe2\U00016fe3\U00016ff0-\U00016ff6\U00020000-\U0003fffd",  # planes 2 and 3 are reserved for Han
    "Hiragana": "\u3031-\u3035\u3041-\u3096\u309d-\u309f\U0001b001-\U0001b11f\U0001b132-\U0001b152\U0001f200",
    "Katakana": "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u32d0-\u32fe\u3300-\u3357\uff66-\uff9f"
    "\U0001aff0-\U0001affe\U0001b000\U0001b120-\U0001b122\U0001b155-\U0001b167",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e5b",
    "Lao": "\u0e80-\u0eff",
    "Khmer": "\u1780-\u17ff\u19e0-\u19ff",
    "Myanmar": "\u1000-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f\U000116d0-\U000116e3",
}
UNSPACED = "".join(UNSPACED_SCRIPTS.values())

# UAX #29 ends a cluster after the signs that stack a consonant under another (Khmer coeng, Myanmar virama), and
# before some Myanmar vowels; a reader sees one character.
_STACKERS = "\u17d2\u1039"
CLUSTER = rf"(?=[{UNSPACED}])\X(?:(?:(?<=[{_STACKERS}])(?=[{UNSPACED}])|(?=\p{{M}}))\X)*"
"""One character of these scripts with its combining marks, as an expression of the tokenizers library."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_BY_SCRIPT = {script: re.compile(f"[{ranges}]") for script, ranges in UNSPACED_SCRIPTS.items()}
_SPLIT_UNSPACED = pre_tokenizers.Split(Regex(CLUSTER), behavior="isolated")
_SPLIT_ALL = pre_tokenizers.Split(Regex(rf"{CLUSTER}|\X"), behavior="isolated")


def unspaced_scripts(text: str) -> list[str]:
    """Returns the names of the scripts without spaces that a text uses."""
    return [script for script, letters in _BY_SCRIPT.items() if letters.search(text)]


def split_unspaced(text: str) -> list[tuple[str, bool]]:
    """Splits off each character of the scripts without spaces; the text must have no lone surrogates.

    Returns:
        (part, whether it is such a character) in order; the parts joined are the text.
    """
    if not _UNSPACED.search(text):
        return [(text, False)]
    parts = [part for part, _ in _SPLIT_UNSPACED.pre_tokenize_str(text)]
    return [(part, _UNSPACED.match(part) is not None) for part in parts]


def count_words(text: str) -> int:
    """Returns the number of words of a text, each character of a script without spaces being one."""
    return sum(1 if is_character else len(part.split()) for part, is_character in split_unspaced(text))


def character_starts(text: str) -> set[int]:
    """Returns the indices at which a character (grapheme cluster) begins, and the length of the text."""
    parts = [part for part, _ in _SPLIT_ALL.pre_tokenize_str(text)]
    return {0, *accumulate(len(part) for part in parts)}
