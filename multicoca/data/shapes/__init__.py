"""The shapes world: scenes whose every fact is known, drawn by each modality as real files."""

from multicoca.data.shapes.language import attribute_score, captions_of, valid_captions
from multicoca.data.shapes.scene import COLORS, MOTIONS, SHAPES, SIZES, Scene, SceneObject, draw_scene

__all__ = [
    "COLORS", "MOTIONS", "SHAPES", "SIZES", "Scene", "SceneObject",
    "attribute_score", "captions_of", "draw_scene", "valid_captions",
]  # fmt: skip
