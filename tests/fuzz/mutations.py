"""What is done to a clean file: bytes and numbers changed, parts cut out, repeated, moved, taken from another file."""

from __future__ import annotations

import re

from hypothesis import strategies as st

_WORDS = [b"0", b"-1", b"1", b"2", b"255", b"65536", b"4294967295", b"1000000000000", b"-1000000000000000",
          b"1e999", b"3e38", b"nan", b"inf", b"1,5", b"0x10", b"9" * 5000, b"", b"\0", b"\xff\xfe", b"true", b"null",
          b"[" * 3000, b"\"", b"\n", b"#", b"float", b"double", b"list", b"char", b"ascii", b"binary", b"../..",
          b"\\ud800"]  # fmt: skip
_INTEGERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 0x01000000]
_NUMBER = re.compile(rb"[-+]?\d[\d.eE+-]*")
_TOKEN = re.compile(rb"[^\s,\"{}\[\]:]+")

_place = st.floats(0, 1, exclude_max=True)
_mutation = st.one_of(
    st.tuples(st.just("bit"), _place, st.integers(0, 7)),
    st.tuples(st.just("byte"), _place, st.integers(0, 255)),
    st.tuples(st.just("integer"), _place, st.sampled_from(_INTEGERS), st.sampled_from([1, 2, 4, 8]), st.booleans()),
    st.tuples(st.just("number"), _place, st.sampled_from(_WORDS)),
    st.tuples(st.just("word"), _place, st.sampled_from(_WORDS)),
    st.tuples(st.just("insert"), _place, st.sampled_from(_WORDS)),
    st.tuples(st.just("cut"), _place, st.integers(1, 64)),
    st.tuples(st.just("end"), _place),
    st.tuples(st.just("repeat"), _place, st.integers(1, 256), st.integers(1, 8)),
    st.tuples(st.just("move"), _place, _place, st.integers(1, 64)),
    st.tuples(st.just("other"), _place, _place, st.integers(1, 256)),
)
recipes = st.tuples(st.integers(0, 99), st.lists(_mutation, min_size=1, max_size=4))


def mutated(files: list[bytes], recipe: tuple[int, list[tuple]]) -> bytes:
    """Returns a file after the mutations of a recipe."""
    number, mutations = recipe
    data = files[number % len(files)]
    for kind, place, *values in mutations:
        data = _apply(data, files[(number + 1) % len(files)], kind, int(place * max(len(data), 1)), values)
    return data


def _apply(data: bytes, other: bytes, kind: str, at: int, values: list) -> bytes:
    if kind == "bit" and data:
        return data[:at] + bytes([data[at] ^ 1 << values[0]]) + data[at + 1 :]
    if kind == "byte":
        return data[:at] + bytes([values[0]]) + data[at + 1 :]
    if kind == "integer":
        value, size, is_big = values
        return data[:at] + (value % 256**size).to_bytes(size, "big" if is_big else "little") + data[at + size :]
    if kind in ("number", "word"):
        found = list((_NUMBER if kind == "number" else _TOKEN).finditer(data[:65536]))
        if not found:
            return data
        match = found[at * len(found) // max(len(data), 1)]
        return data[: match.start()] + values[0] + data[match.end() :]
    if kind == "insert":
        return data[:at] + values[0] + data[at:]
    if kind == "cut":
        return data[:at] + data[at + values[0] :]
    if kind == "end":
        return data[:at]
    if kind == "repeat":
        size, times = values
        return data[:at] + data[at : at + size] * times + data[at + size :]
    if kind == "move":
        target, size = int(values[0] * max(len(data), 1)), values[1]
        part, rest = data[at : at + size], data[:at] + data[at + size :]
        return rest[:target] + part + rest[target:]
    if kind == "other":
        start, size = int(values[0] * max(len(other), 1)), values[1]
        return data[:at] + other[start : start + size] + data[at + size :]
    return data
