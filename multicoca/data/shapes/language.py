"""What can be said of a scene: captions for training, all valid captions, and the share of words that is right.

A caption says what a front view shows; a modality adds the facts it alone shows: "motion" for clips ("a red ball
moving up"), "depth" for point clouds ("left of and behind a blue cube"). `valid_captions` is the ground truth for
exact match: any order of naming, any true relation and any phrasing counts. `attribute_score` reads a caption
leniently, word by word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Set

import numpy as np

from multicoca.data.shapes.scene import COLORS, MARGIN, MOTIONS, PLACES, SHAPES, SIZES, Scene, SceneObject

_RELATIONS = {"right of": (0, 1), "left of": (0, -1), "above": (2, 1), "below": (2, -1)}  # axis, sign of a - b
_PHRASES = {"right of": ("right of", "to the right of"), "left of": ("left of", "to the left of")}
_DEPTHS = ("in front of", "behind")


def captions_of(scene: Scene, facts: Set[str], count: int) -> list[str]:
    """Returns up to `count` different captions; the first is a canonical one, equal for equal content.

    Args:
        scene: what to describe.
        facts: what is visible beyond the front view, any of {"motion", "depth"}.
        count: how many captions to return at the most.
    """
    rng = np.random.default_rng((*scene.seed, 7))
    first, *others = range(len(scene.objects))
    orders = [(first, *others)] if len(others) != 1 else [(first, *others), (*others, first)]
    pool = list(_captions(scene, facts, orders, clearest_only=True))
    rest = [pool[1:][i] for i in rng.permutation(len(pool) - 1)]
    return [pool[0], *rest[: count - 1]]


def valid_captions(scene: Scene, facts: Set[str]) -> set[str]:
    """Returns every caption that is true of the scene and complete."""
    orders = itertools.permutations(range(len(scene.objects)))
    return set(_captions(scene, facts, orders, clearest_only=False))


def attribute_score(caption: str, scene: Scene, facts: Set[str]) -> tuple[int, int]:
    """Counts the colour, shape, size, place, relation, motion and depth words that are right.

    Objects of the caption are matched to those of the scene in the way that is best for the caption; words
    about an object that the scene does not have count as wrong.

    Returns:
        (right, total): total is the number of facts of the scene, or of the caption when it states more.
    """
    named = list(_NAMED.finditer(caption))
    count = len(scene.objects)
    total = 3 * max(count, len(named)) + (2 if count == 3 else 1) + (count > 1) + len(facts)
    slots = list(range(count)) + [None] * max(0, len(named) - count)
    best = 0
    for assigned in set(itertools.permutations(slots, len(named))):
        right = 0
        for match, index in zip(named, assigned, strict=True):
            if index is not None:
                target = scene.objects[index]
                right += sum(
                    a == b for a, b in zip(match.groups()[:3], (target.size, target.color, target.shape), strict=True)
                )
        objects = [None if index is None else scene.objects[index] for index in assigned]
        right += _relation_is_right(caption, objects, count) + _right_places(caption, objects, count)
        if "motion" in facts:
            said = {(index, match[4]) for match, index in zip(named, assigned, strict=True) if match[4]}
            right += bool(named) and said == (set() if scene.motion is None else {scene.motion})
        right += "depth" in facts and _depth_is_right(caption, objects, count)
        best = max(best, right)
    return best, total


def _captions(scene: Scene, facts: Set[str], orders: Iterable[tuple[int, ...]], clearest_only: bool) -> Iterable[str]:
    """Yields captions in a fixed order: every phrasing, for each order of naming the objects."""
    for order in orders:
        names = [_name(scene, index, facts) for index in order]
        first, *others = (scene.objects[index] for index in order)
        if not others:
            tail = f", {_distance(first)}" if "depth" in facts else ""
            yield f"{names[0]} {first.place}{tail}"
            yield f"there is {names[0]} {first.place}{tail}"
            yield f"{first.place} is {names[0]}{tail}"
            continue
        for relation in _relations(first, others[0], clearest_only):
            for phrase in _PHRASES.get(relation, (relation,)):
                if "depth" in facts:
                    phrase = f"{phrase} and {_DEPTHS[first.position[1] > others[0].position[1]]}"
                for start in ("", "there is "):
                    base = f"{start}{names[0]} {first.place}, {phrase} {names[1]}"
                    if len(others) == 1:
                        yield base
                    else:
                        yield f"{base}, and {names[2]} {others[1].place}"
                        yield f"{base}, with {names[2]} {others[1].place}"


def _name(scene: Scene, index: int, facts: Set[str]) -> str:
    target = scene.objects[index]
    moves = "motion" in facts and scene.motion is not None and scene.motion[0] == index
    return f"a {target.size} {target.color} {target.shape}" + (f" moving {scene.motion[1]}" if moves else "")


def _distance(target: SceneObject) -> str:
    return "far away" if target.position[1] > 0 else "close to us"


def _relations(first: SceneObject, second: SceneObject, clearest_only: bool) -> list[str]:
    """Returns the relations that hold from first to second, or only the one along the longer distance."""
    gaps = {word: sign * (first.position[axis] - second.position[axis]) for word, (axis, sign) in _RELATIONS.items()}
    if clearest_only:
        return [max(gaps, key=gaps.__getitem__)]
    return [word for word, gap in gaps.items() if gap >= MARGIN]


def _either(words: Iterable[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_NAMED = re.compile(rf"\ba {_either(SIZES)} {_either(COLORS)} {_either(SHAPES)}\b(?: moving {_either(MOTIONS)}\b)?")
_PLACE = re.compile(rf"\b{_either(place for row in PLACES for place in row)}\b")
_RELATION = re.compile(rf", (?:to the )?{_either(_RELATIONS)}(?: and {_either(_DEPTHS)})? a\b")


def _relation_is_right(caption: str, objects: list[SceneObject | None], count: int) -> bool:
    """Whether the relation between the first two objects of the caption holds in the scene."""
    found = _RELATION.search(caption)
    if count < 2 or found is None or len(objects) < 2 or objects[0] is None or objects[1] is None:
        return False
    return found[1] in _relations(objects[0], objects[1], clearest_only=False)


def _right_places(caption: str, objects: list[SceneObject | None], count: int) -> int:
    """Counts the places that are right: that of the first object and, of three, that of the third."""
    said = _PLACE.findall(caption)
    placed = [objects[index] for index in (0, 2) if index < len(objects)][: 2 if count == 3 else 1]
    pairs = zip(said, placed, strict=False)
    return sum(target is not None and target.place == place for place, target in pairs)


def _depth_is_right(caption: str, objects: list[SceneObject | None], count: int) -> bool:
    if not objects or objects[0] is None:
        return False
    if count == 1:
        return caption.endswith(_distance(objects[0]))
    found = _RELATION.search(caption)
    if found is None or len(objects) < 2 or objects[1] is None:
        return False
    return found[2] == _DEPTHS[objects[0].position[1] > objects[1].position[1]]
