"""YAML from elsewhere: mappings, lists, words and numbers, of a bounded size; no references, tags or interpolation.

A reference (`*name`) lets a kilobyte stand for more than any memory, and an interpolation (`${oc.env:HOME}`) reads
what is nobody else's business. Our own files have neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 30
_MAX_NUMBER = 1 << 40
_PLAIN = (str, int, float, bool, type(None))


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses references."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes a node, as the base class does."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not allowed")
        return super().compose_node(parent, index)


def read_plain_yaml(file: Path) -> Mapping[str, Any]:
    """Reads a file that holds one mapping.

    Raises:
        ValueError: it is no such file; one line with the file's name.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes; expected at most {_MAX_BYTES:,}")
        content = yaml.load(file.read_text(encoding="utf-8"), _PlainLoader)
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds a {type(content).__name__}; expected a mapping")
        for place, value in _leaves(content, "", 0):
            _check(place, value)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is not a plain configuration: {reason[:300]}") from error
    return content


def _leaves(node: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields (dotted place, value) of all that is not a container."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{place} lies more than {_MAX_DEPTH} levels deep")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} in {place or 'it'} is not a word")
            yield from _leaves(value, f"{place}.{key}" if place else key, depth + 1)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{place}[{index}]", depth + 1)
    else:
        yield place, node


def _check(place: str, value: Any) -> None:
    if not isinstance(value, _PLAIN):
        raise ValueError(f"{place} is a {type(value).__name__}; expected words, numbers, lists and mappings")
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{place} is {value!r:.60}; interpolation is not allowed")
    if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= _MAX_NUMBER):
        raise ValueError(f"{place} is {str(value)[:30]}; expected a number of at most {_MAX_NUMBER:,}")
