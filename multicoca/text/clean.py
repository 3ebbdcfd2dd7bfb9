"""What is done to a text before it is split into tokens, where a tokenizer.json cannot say it."""

from __future__ import annotations

import html
from collections.abc import Callable


def clip_clean(text: str) -> str:
    """Fixes broken Unicode, resolves HTML entities twice, joins white space to single spaces, lower case.

    Source: CLIP (arXiv 2103.00020); the same steps as in its tokenizer and open_clip's.
    """
    import ftfy  # here: most models have no use for it

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def replace_surrogates(text: str) -> str:
    """Returns the text with a question mark for each lone surrogate, which the tokenizers library refuses."""
    return text.encode(errors="replace").decode()


CLEANERS: dict[str, Callable[[str], str]] = {"none": str, "clip": clip_clean}
