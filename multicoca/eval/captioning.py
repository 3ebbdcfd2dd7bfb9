"""How well generated captions agree with references: exact match, BLEU-4, ROUGE-L, CIDEr-D and METEOR.

The n-gram scores are pycocoevalcap's own, called one by one; only its tokenizer, which needs Java, is replaced by
`tokenize`, a small one with the same rules. Its `Cider` is CIDEr-D (clipping, Gaussian length penalty with
sigma 6), with document frequencies from the references given. What cannot be computed is left out of the result
and named in its notes. Scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are scored by
character, and the notes name them.

Sources: BLEU (Papineni 2002), ROUGE-L (Lin 2004, beta 1.2), CIDEr-D (arXiv 1411.5726), METEOR 1.5 (Denkowski 2014).
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from multicoca.modality import require
from multicoca.text.clean import replace_surrogates
from multicoca.text.scripts import UNSPACED, split_unspaced, unspaced_scripts

# pycocoevalcap's list; its brackets are in upper case and so match no token: brackets stay
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
# their counterparts in captions with a script without spaces, where full-width forms have become ASCII before; Khmer
# and Burmese full stops and the space of no width are written as numbers
_DROPPED_UNSPACED = _DROPPED | frozenset("、。「」『』《》〈〉・…\u17d4\u17d5\u17d6\u104a\u104b\u200b")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURLY = str.maketrans({"\u2019": "'", "\u2018": "`", "\u201c": '"', "\u201d": '"', "\u2014": "-", "\u2013": "-"})
_FULL_AND_HALF_WIDTH = re.compile("[\uff00-\uffef]+")  # the block "Halfwidth and Fullwidth Forms"
_GAP = re.compile(rf"(?<=[{UNSPACED}])[\s\u200b]+|[\s\u200b]+(?=[{UNSPACED}])")
_TOKEN = re.compile(
    r"""-[lr][rsc]b-               # a bracket
      | (?:[^\W\d_]\.){2,}         # u.s.a.
      | \d+(?:[.,:/]\d+)+          # 1,000.50
      | (?:mr|mrs|ms|dr|vs)\.
      | (?:ca|wo)(?=n't\b)         # can't, won't
      | \w+?(?=n't\b)              # do|n't
      | n't\b
      | '(?:s|m|d|ll|re|ve)\b      # it|'s
      | (?:gon|wan)(?=na\b) | (?<=gon|wan)na\b | can(?=not\b) | (?<=can)not\b
      | \w+(?:[-/]\w+)*            # well-known, and/or
      | \.{3} | -- | '' | ``
      | [^\w\s]                    # any other sign by itself
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> str:
    """Splits a caption as the Penn Treebank does and returns the words joined by spaces.

    Lower-case; 's, n't and their like are words, as are gon|na and can|not; brackets become -lrb- and -rrb-; quotes and
    . ? ! , : ; - are dropped; $ % & /, hyphenated words and u.s.a. are kept. Each character of a script without spaces
    is a word, with its combining marks; full-width forms are ordinary ones.
    """
    parts = split_unspaced(_normalized(caption))
    dropped = _DROPPED_UNSPACED if any(is_character for _, is_character in parts) else _DROPPED
    tokens = [token for part, is_character in parts for token in ([part] if is_character else _penn_tokens(part))]
    return " ".join(token for token in tokens if token not in dropped)


def _penn_tokens(text: str) -> list[str]:
    text = text.translate(_CURLY)
    for bracket, word in _BRACKETS.items():
        text = text.replace(bracket, f" {word} ")
    text = text.replace('"', " '' ")
    return _TOKEN.findall(text)


def caption_metrics(
    generated: Sequence[str],
    references: Sequence[Sequence[str]],
    is_right: Callable[[int, str], bool] | None = None,
    meteor: bool = False,
) -> dict[str, float | int | list[str]]:
    """Scores captions against references.

    Args:
        generated: one caption per item; may be empty strings.
        references: one or more captions per item.
        is_right: decides whether a caption of the item with that number is exactly right; by default it must
            equal a reference, letter case, white space and full-width forms aside.
        meteor: also compute METEOR, which starts a Java program for several seconds.

    Returns:
        "exact_match", "bleu4", "rouge_l" and "meteor" as shares of 1, "cider_d" from 0 to 10 (papers print it times
        100), "used", the number of items, and "notes" on what is missing or special.

    Raises:
        ValueError: there is no item, the lengths differ, or an item has no reference.
    """
    if not generated or len(generated) != len(references):
        raise ValueError(
            f"got {len(generated)} captions and references for {len(references)} items; "
            "there must be as many of one as of the other, at least 1"
        )
    without = sum(not item for item in references)
    if without:
        raise ValueError(f"{without} of {len(references)} items have no reference; each needs at least 1")
    if is_right is None:
        right = [is_reference(caption, item) for caption, item in zip(generated, references, strict=True)]
    else:
        right = [is_right(index, caption) for index, caption in enumerate(generated)]
    scores: dict[str, float | int | list[str]] = {"exact_match": float(np.mean(right)), "used": len(generated)}
    notes: list[str] = []
    truth = {index: [tokenize(caption) for caption in item] for index, item in enumerate(references)}
    answers = {index: [tokenize(caption)] for index, caption in enumerate(generated)}
    try:
        scores.update(_overlap(truth, answers))
        scripts = unspaced_scripts(" ".join([*generated, *(caption for item in references for caption in item)]))
        if scripts:
            names = " and ".join([", ".join(scripts[:-1]), scripts[-1]] if scripts[1:] else scripts)
            notes.append(f"BLEU, ROUGE-L, CIDEr-D and METEOR count characters, not words, of {names}")
        if len(generated) == 1:
            notes.append("CIDEr-D is 0 for a single item: it weighs words by how few items have them")
        if meteor:
            scores.update(_meteor(truth, answers, notes))
    except ImportError as error:
        notes.append(f"BLEU, ROUGE-L, CIDEr-D and METEOR are missing: {error}")
    return {**scores, "notes": notes}


def is_reference(caption: str, references: Sequence[str]) -> bool:
    """Whether a caption equals a reference, letter case, white space and full-width forms aside."""
    return _plain(caption) in {_plain(reference) for reference in references}


def _plain(caption: str) -> str:
    return _GAP.sub("", " ".join(_normalized(caption).split()))


def _normalized(caption: str) -> str:
    """Lower case, composed characters (NFC), full-width and half-width forms as ordinary ones (NFKC)."""
    text = _FULL_AND_HALF_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), replace_surrogates(caption))
    return unicodedata.normalize("NFC", text.lower())


def _overlap(truth: dict[int, list[str]], answers: dict[int, list[str]]) -> dict[str, float]:
    bleu = require("pycocoevalcap.bleu.bleu", "eval").Bleu(4)
    rouge = require("pycocoevalcap.rouge.rouge", "eval").Rouge()
    cider = require("pycocoevalcap.cider.cider", "eval").Cider()
    return {
        "bleu4": float(bleu.compute_score(truth, answers, verbose=0)[0][3]),
        "rouge_l": float(rouge.compute_score(truth, answers)[0]),
        "cider_d": float(cider.compute_score(truth, answers)[0]),
    }


def _meteor(truth: dict[int, list[str]], answers: dict[int, list[str]], notes: list[str]) -> dict[str, float]:
    if shutil.which("java") is None:
        notes.append("METEOR is missing: it needs the program 'java' (Debian: apt-get install default-jre-headless)")
        return {}
    scorer = require("pycocoevalcap.meteor.meteor", "eval").Meteor()
    try:
        return {"meteor": float(scorer.compute_score(truth, answers)[0])}
    except (OSError, ValueError) as error:  # the program ended, or answered something that is no number
        notes.append(f"METEOR is missing: its Java program failed ({error})")
        return {}
