"""Examples on the report page: captions beside their references, and the five best answers to queries.

Failures come before successes, the worst first, because they say more. A wrong caption is compared word by word
with the reference that is closest to it.
"""

from __future__ import annotations

import base64
import difflib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from PIL import Image

from multicoca.cli.report_tables import plain_number

_CAPTION_FAILURES, _CAPTION_SUCCESSES = 10, 4  # shown of each modality
_OTHER_REFERENCES = 2
_THUMBNAIL_PX = 480  # longer sides are scaled down to it
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class CaptionExample:
    """A generated caption beside its references.

    Attributes:
        thumbnail: a picture of the item.
        references: captions that are right; with many phrasings the comparison is closer, a few are shown.
        generated: what the model wrote.
        right: whether it is fully right; None when nobody judged.
        score: the share of its facts that is right, if known; failures are sorted by it.
    """

    thumbnail: Image.Image
    references: Sequence[str]
    generated: str
    right: bool | None = None
    score: float | int | None = None


@dataclass(frozen=True)
class RetrievalExample:
    """A query and its best answers.

    Attributes:
        query: the text asked with, or a caption of the item asked with.
        results: (picture, caption, whether it is the right one) of the best answers, best first.
        rank: the 1-based rank of the right one, which may lie beyond the results.
        query_thumbnail: a picture of the item asked with; None when the query is the text.
    """

    query: str
    results: Sequence[tuple[Image.Image, str, bool]]
    rank: float | int
    query_thumbnail: Image.Image | None = None


def caption_examples(examples: Mapping[str, Sequence[CaptionExample]]) -> str:
    """Makes the captions of every modality as HTML, empty when there are none."""
    return "".join(_captions_of(name, found) for name, found in examples.items() if found)


def retrieval_examples(examples: Mapping[str, Sequence[RetrievalExample]], failures: int, successes: int) -> str:
    """Makes the queries of every modality, or pair of modalities, as HTML, empty when there are none.

    Args:
        examples: by modality or pair.
        failures: how many queries are shown at most whose right answer is not first, of each.
        successes: how many are shown at most whose right answer is first.
    """
    shown = []
    for name, found in examples.items():
        ordered = sorted(found, key=lambda one: -one.rank)
        missed = [one for one in ordered if one.rank > 1][:failures]
        hit = [one for one in ordered if one.rank <= 1][:successes]
        if found:
            heading = escape(name.replace("->", "\u2192"))
            counts = f"{len(missed)} missed, then {len(hit)} found first"
            shown.append(f'<h3>{heading} <small class="none">{counts}</small></h3>')
            shown += map(_retrieval, [*missed, *hit])
    return "".join(shown)


def marked(generated: str, reference: str) -> tuple[str, str]:
    """Marks the words of a caption that differ from a reference, and the reference's that it lacks.

    Words that only stand elsewhere are not marked, unless nothing else differs.

    Returns:
        (caption with <mark>, reference with <ins>) as HTML.
    """
    words, true_words = generated.split(), reference.split()
    plain, true_plain = _plain(words), _plain(true_words)
    odd, missing = set(range(len(words))), set(range(len(true_words)))
    for start, true_start, size in _matcher(plain, true_plain).get_matching_blocks():
        odd -= set(range(start, start + size))
        missing -= set(range(true_start, true_start + size))
    moved = Counter(plain[i] for i in odd) & Counter(true_plain[i] for i in missing)
    truly_odd, truly_missing = _without(moved, odd, plain), _without(moved, missing, true_plain)
    if truly_odd or truly_missing:
        odd, missing = truly_odd, truly_missing
    return _tagged(words, odd, "mark"), _tagged(true_words, missing, "ins")


def _plain(words: Sequence[str]) -> list[str]:
    return [word.strip(".,;:!?").lower() for word in words]


def _matcher(words: Sequence[str], true_words: Sequence[str]) -> difflib.SequenceMatcher[str]:
    return difflib.SequenceMatcher(None, words, true_words, autojunk=False)


def _without(moved: Counter[str], places: set[int], words: Sequence[str]) -> set[int]:
    """Takes out as many of the words as were moved."""
    left, kept = Counter(moved), set()
    for place in sorted(places):
        if left[words[place]] > 0:
            left[words[place]] -= 1
        else:
            kept.add(place)
    return kept


def _tagged(words: Sequence[str], places: set[int], tag: str) -> str:
    """Joins words, each stretch of those at the given places inside one element."""
    stretches = []
    for inside, stretch in groupby(range(len(words)), key=places.__contains__):
        text = escape(" ".join(words[place] for place in stretch))
        stretches.append(f"<{tag}>{text}</{tag}>" if inside else text)
    return " ".join(stretches)


def _captions_of(modality: str, examples: Sequence[CaptionExample]) -> str:
    failures = [one for one in examples if not one.right]
    failures.sort(key=lambda one: -1.0 if one.score is None else one.score)
    successes = [one for one in examples if one.right]
    failures, successes = failures[:_CAPTION_FAILURES], successes[:_CAPTION_SUCCESSES]
    judged = any(one.right is not None for one in examples)
    counts = f"{len(failures)} wrong, then {len(successes)} right" if judged else f"{len(failures)}, not judged"
    rows = "".join(_caption(one) for one in [*failures, *successes])
    return f'<h3>{escape(modality)} <small class="none">{counts}</small></h3><div class="examples">{rows}</div>'


def _caption(example: CaptionExample) -> str:
    kind = {True: "right", False: "wrong", None: "unjudged"}[example.right]
    verdict = {"right": "\u2713 right", "wrong": "wrong", "unjudged": ""}[kind]
    if kind == "wrong" and example.score is not None:
        verdict = f"{100 * example.score:.0f}% of facts right"
    written, others = escape(example.generated), list(dict.fromkeys(example.references))
    lines = []
    if others:
        closest = _closest(example.generated, others)
        others.remove(closest)
        reference = escape(closest)
        if kind != "right":
            written, reference = marked(example.generated, closest)
        lines = [f"<p><span>reference</span>{reference}</p>"]
        lines += [f'<p class="more">or: {escape(one)}</p>' for one in others[:_OTHER_REFERENCES]]
    written = written or "<i>nothing</i>"
    picture = _picture(example.thumbnail, "the captioned item")
    return (
        f'<article class="example {kind}">{picture}<div class="words"><b class="badge {kind}">{verdict}</b>'
        f"<p><span>written</span>{written}</p>{''.join(lines)}</div></article>"
    )


def _closest(generated: str, references: Sequence[str]) -> str:
    words = _plain(generated.split())
    return max(references, key=lambda one: _matcher(words, _plain(one.split())).ratio())


def _retrieval(example: RetrievalExample) -> str:
    asked = ""
    if example.query_thumbnail is not None:
        asked = _picture(example.query_thumbnail, "the item asked with", css="asked")
    kind, verdict = "right", "\u2713 found first"
    if example.rank > 1:
        shown = any(hit for _, _, hit in example.results)
        kind, verdict = "wrong", f"right one at rank {plain_number(example.rank)}{'' if shown else ', not shown'}"
    answers = "".join(_answer(place, *result) for place, result in enumerate(example.results, 1))
    return (
        f'<div class="query {kind}"><div class="question">{asked}<blockquote>\u201c{escape(example.query)}\u201d'
        f'</blockquote><span class="rank">{verdict}</span></div><ol class="answers">{answers}</ol></div>'
    )


def _answer(place: int, picture: Image.Image, caption: str, hit: bool) -> str:
    kind, number = ("hit", f"{place} \u2713") if hit else ("miss", str(place))
    return (
        f'<li class="{kind}"><div class="frame">{_picture(picture, f"answer {place}")}</div>'
        f"<b>{number}</b> {escape(caption)}</li>"
    )


def _picture(picture: Image.Image, words: str, css: str = "thumbnail") -> str:
    """Embeds a picture as a JPEG, transparency on white, scaled down when it is large."""
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if max(picture.size) > _THUMBNAIL_PX:
        picture = picture.copy()
        picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(words)}" class="{css}">'
