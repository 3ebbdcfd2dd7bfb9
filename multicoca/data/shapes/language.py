"""What can be said of a scene: captions for training, all valid captions, and the share of words that is right.

A caption says what a front view shows; a modality adds the facts it alone shows: "motion" for clips, "depth"
for point clouds. `valid_captions` is the ground truth for exact match: any order of naming, any true relation
and any phrasing counts. `attribute_score` reads a caption leniently, word by word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Set

import numpy as np

from multicoca.data.shapes.scene import COLORS, MARGIN, MOTIONS, PLACES, SHAPES, SIZES, Scene, SceneObject

_RELATIONS = {"right of": (0, 1), "left of": (0, -1), "above": (2, 1), "below": (2, -1)}  # axis, sign of a - b
_PHRASES = {"right of": ("right of", "to the right of"), "left of": ("left of", "to the left of")}


def captions_of(scene: Scene, facts: Set[str], count: int) -> list[str]:
    """Returns up to `count` different captions; the first is a canonical one, equal for equal content.

    Args:
        scene: what to describe.
        facts: what is visible beyond the front view, any of {"motion", "depth"}.
        count: how many captions to return at the most.
    """
    rng = np.random.default_rng((*scene.seed, 7))
    pool = list(_captions(scene, facts, orders=[tuple(range(len(scene.objects)))], clearest_only=True))
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
    named = [match.groups() for match in _NAMED.finditer(caption)]
    total = 3 * max(len(scene.objects), len(named)) + (len(scene.objects) != 2) + (len(scene.objects) > 1) + len(facts)
    slots = list(range(len(scene.objects))) + [None] * max(0, len(named) - len(scene.objects))
    best = 0
    for assigned in set(itertools.permutations(slots, len(named))):
        right = 0
        for words, index in zip(named, assigned, strict=True):
            if index is not None:
                target = scene.objects[index]
                right += sum(a == b for a, b in zip(words, (target.size, target.color, target.shape), strict=True))
        objects = [None if index is None else scene.objects[index] for index in assigned]
        right += _relation_is_right(caption, scene, objects) + _place_is_right(caption, scene, objects)
        best = max(best, right)
    best += "motion" in facts and _motion_is_right(caption, scene)
    best += "depth" in facts and _depth_is_right(caption, scene)
    return best, total


def _captions(
    scene: Scene, facts: Set[str], orders: Iterable[tuple[int, ...]], clearest_only: bool
) -> Iterable[str]:
    """Yields captions in a fixed order: every phrasing, for each order of naming the objects."""
    for order in orders:
        a, *others = (scene.objects[i] for i in order)
        bases: list[str] = []
        if not others:
            bases = [f"{_name(a)} {a.place}", f"there is {_name(a)} {a.place}", f"{a.place} is {_name(a)}"]
        else:
            pairs = [(a, others[0])] + ([(others[0], a)] if clearest_only else [])
            for first, second in pairs:
                for relation in _relations(first, second, clearest_only):
                    for phrase in _PHRASES.get(relation, (relation,)):
                        bases.append(f"{_name(first)} {phrase} {_name(second)}")
                        bases.append(f"there is {_name(first)} {phrase} {_name(second)}")
            for third in others[1:]:
                bases = [f"{base}{joint} {_name(third)} {third.place}" for base in bases for joint in (", and", ", with")]
        tails = [""]
        if "motion" in facts:
            tails = [tail + clause for tail in tails for clause in _motion_clauses(scene)]
        if "depth" in facts:
            tails = [tail + clause for tail in tails for clause in _depth_clauses(a, others[0] if others else None)]
        yield from (base + tail for base in bases for tail in tails)


def _name(target: SceneObject) -> str:
    return f"a {target.size} {target.color} {target.shape}"


def _short_name(target: SceneObject) -> str:
    return f"the {target.color} {target.shape}"


def _relations(first: SceneObject, second: SceneObject, clearest_only: bool) -> list[str]:
    """Returns the relations that hold from first to second, or only the one along the longer distance."""
    gaps = {word: sign * (first.position[axis] - second.position[axis]) for word, (axis, sign) in _RELATIONS.items()}
    if clearest_only:
        return [max(gaps, key=gaps.__getitem__)]
    return [word for word, gap in gaps.items() if gap >= MARGIN]


def _motion_clauses(scene: Scene) -> list[str]:
    if scene.motion is None:
        return [", and nothing moves", ", nothing moving"]
    mover, direction = _short_name(scene.objects[scene.motion[0]]), scene.motion[1]
    return [f", and {mover} moves {direction}", f", {mover} moving {direction}"]


def _depth_clauses(first: SceneObject, second: SceneObject | None) -> list[str]:
    if second is None:
        return [f", {'far away' if first.position[1] > 0 else 'close to us'}"]
    clauses = []
    for a, b in ((first, second), (second, first)):
        clauses.append(f", {_short_name(a)} {'behind' if a.position[1] > b.position[1] else 'in front of'} {_short_name(b)}")
    return clauses


def _either(words: Iterable[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_NAMED = re.compile(rf"\ba {_either(SIZES)} {_either(COLORS)} {_either(SHAPES)}\b")
_PLACE = re.compile(rf"\b{_either(place for row in PLACES for place in row)}\b")
_RELATION = re.compile(rf"\b{_either(_RELATIONS)} a\b")
_MOTION = re.compile(rf"\bthe {_either(COLORS)} {_either(SHAPES)} mov(?:es|ing) {_either(MOTIONS)}\b")
_PAIR = rf"the {_either(COLORS)} {_either(SHAPES)}"
_DEPTH = re.compile(rf"\b{_PAIR} (behind|in front of) {_PAIR}\b")


def _relation_is_right(caption: str, scene: Scene, objects: list[SceneObject | None]) -> bool:
    """Whether the relation between the first two objects of the caption holds in the scene."""
    found = _RELATION.search(caption)
    if len(scene.objects) < 2 or found is None or len(objects) < 2 or objects[0] is None or objects[1] is None:
        return False
    return found[1] in _relations(objects[0], objects[1], clearest_only=False)


def _place_is_right(caption: str, scene: Scene, objects: list[SceneObject | None]) -> bool:
    """Whether the place stated (of the only object, or of the third) is that object's place."""
    found = _PLACE.search(caption)
    placed = objects[-1] if len(objects) in (1, 3) else None
    return len(scene.objects) != 2 and found is not None and placed is not None and placed.place == found[1]


def _motion_is_right(caption: str, scene: Scene) -> bool:
    if scene.motion is None:
        return re.search(r"\bnothing mov(es|ing)\b", caption) is not None
    found, mover = _MOTION.search(caption), scene.objects[scene.motion[0]]
    return found is not None and found.groups() == (mover.color, mover.shape, scene.motion[1])


def _depth_is_right(caption: str, scene: Scene) -> bool:
    if len(scene.objects) == 1:
        return caption.endswith(_depth_clauses(scene.objects[0], None)[0])
    found = _DEPTH.search(caption)
    if found is None:
        return False
    by_look = {(target.color, target.shape): target for target in scene.objects}
    first, second = by_look.get(found.groups()[:2]), by_look.get(found.groups()[3:])
    if first is None or second is None or first is second:
        return False
    return (first.position[1] > second.position[1]) == (found[3] == "behind")
