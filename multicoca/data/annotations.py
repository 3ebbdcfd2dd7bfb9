"""Annotations: captions, label, split, modality and key of an item, as manifests and shards give them, checked first.

Every function here takes values that anybody may have written. It returns text that can be encoded and printed, or
raises `UnreadableFileError`, so that a bad line or sample is one problem and the rest is read.
"""

from __future__ import annotations

import ast
import codecs
import io
import json
import re
import tokenize
import warnings
from collections.abc import Mapping
from typing import Any

from multicoca.modality import UnreadableFileError
from multicoca.reading import describe, refuse_broken

TRAIN, TEST, VALIDATION = "train", "test", "validation"
_SPLITS = {
    TRAIN: ("train", "training"),
    TEST: ("test", "testing"),
    VALIDATION: ("validation", "valid", "val", "dev", "eval"),
}
_SPLIT_OF = {name: split for split, names in _SPLITS.items() for name in names}
_LIST_STARTS = ("[", "(", "{", "array(")
_LIST = re.compile(r"(?:array\()?[\[({]+\s*(?:np\.str_\()?['\"]")
_DEEPEST = 100  # levels of JSON; more than any metadata has, and few enough to be pickled and written again
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip, as Excel does",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse_json(text: str) -> Any:
    """Parses JSON that anybody may have written.

    Raises:
        UnreadableFileError: it is no JSON, nested too deeply, or holds a number with too many digits.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(describe(error)) from error
    if len(text) > 2 * _DEEPEST and text.count("[") + text.count("{") > _DEEPEST and _is_deeper(value, _DEEPEST):
        raise UnreadableFileError(f"it is nested more than {_DEEPEST} levels deep")
    return value


def decode_text(content: bytes) -> str:
    """Decodes UTF-8, or UTF-16 with a byte-order mark, and takes the mark off.

    Raises:
        UnreadableFileError: it is in another encoding.
    """
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableFileError(str(error)) from error


def packing(head: bytes) -> str:
    """Says how a file is packed, from its first bytes, or ""."""
    return next((f"packed by {name}" for start, name in _PACKED.items() if head.startswith(start)), "")


def clean_text(name: str, text: str) -> str:
    """Returns a text that can be stored, without white space around it.

    Raises:
        UnreadableFileError: it holds a null byte or half a character.
    """
    if "\0" in text:
        raise UnreadableFileError(f"its {name} holds a null byte; remove it")
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UnreadableFileError(
            f"its {name} holds half a character, the lone surrogate {half}; write the whole character"
        ) from error
    return text.strip()


def parse_string(name: str, value: Any) -> str:
    """Returns a label, split, modality or key as text; "" where there is none.

    Raises:
        UnreadableFileError: it is a list or an object, or holds a null byte or half a character.
    """
    if value is None or value != value:  # pandas writes a missing value as NaN
        return ""
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise UnreadableFileError(f"its {name} is {kind}; expected a string or a number")
    return clean_text(name, str(value))


def parse_captions(name: str, value: Any) -> list[str]:
    """Returns the captions that a value holds, each once: a string, a list of strings (also as text), or nothing.

    Raises:
        UnreadableFileError: it is something else, or holds a null byte or half a character.
    """
    if isinstance(value, str):
        value = parse_list(value)
    if isinstance(value, str):
        text = clean_text(name, value)
        return [text] if text else []
    if value is None or value != value:
        return []
    found = []
    for text in value if isinstance(value, list) else [value]:
        if text is not None and not isinstance(text, str):
            raise UnreadableFileError(
                f"it has no caption that can be used: {name} holds {shorten(text)}; expected a string or a list of "
                "strings"
            )
        if text and clean_text(name, text):
            found.append(clean_text(name, text))
    return list(dict.fromkeys(found))


def parse_list(text: str) -> str | list[str]:
    """Returns the captions of a text that is a list of strings as JSON, Python or numpy write it, or the text.

    Raises:
        UnreadableFileError: it begins like such a list and is none.
    """
    text = text.strip()
    if not text.startswith(_LIST_STARTS):
        return text
    if text == "[]":
        return []
    if not _LIST.match(text):
        return text
    strings = _json_strings(text) or _python_strings(text)
    if strings is None and text[0] != "(":
        raise UnreadableFileError(
            f"its text is {shorten(text)}, which begins like a list of captions but is no list of strings; "
            'write it as ["one", "two"], or write one caption'
        )
    return text if strings is None else strings


def _json_strings(text: str) -> list[str] | None:
    try:
        value = parse_json(text)
    except UnreadableFileError:
        return None
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _python_strings(text: str) -> list[str] | None:
    """Returns the strings of a list, tuple or set; numpy writes no commas, which would join the strings in Python."""
    try:
        with refuse_broken(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about a backslash in a caption
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
            strings = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except UnreadableFileError:
        return None
    others = [token.string for token in tokens if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)]
    is_flat = others[0] + others[-1] in ("[]", "()", "{}") and set(others[1:-1]) <= {","}
    is_tuple = text[0] == "[" or "," in others  # ("a") and {"a" "b"} are no lists
    return strings if is_flat and is_tuple and all(isinstance(one, str) for one in strings) else None


def parse_split(value: Any) -> str:
    """Returns the split that a name means: "train", "test", "validation" or the name itself; "" where there is none.

    Raises:
        UnreadableFileError: it is no name.
    """
    name = parse_string("split", value)
    return _SPLIT_OF.get(name.lower(), name)


def printable(text: str) -> str:
    """Returns a text that can be written anywhere: bytes that are not UTF-8 become \\xNN, half characters \\uNNNN."""
    if text.isascii():
        return text
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()


def shorten(value: Any, length: int = 60) -> str:
    """Returns a value as a phrase for a message."""
    with refuse_broken():
        text = printable(repr(value))
    return text if len(text) <= length else text[:length] + "..."


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ())
        level = inner
    return bool(level)
