"""The image modality: files to pixels, and the vision transformers and backbones of timm as encoders."""

from multicoca_image.encoder import TimmEncoder
from multicoca_image.feature_map import TimmFeatureMap
from multicoca_image.processor import ImageProcessor, timm_processor
from multicoca_image.stem import ConvStemConfig

__all__ = ["ConvStemConfig", "ImageProcessor", "TimmEncoder", "TimmFeatureMap", "timm_processor"]
TARGETS = {
    "processor": ("ImageProcessor", "timm_processor"),
    "encoder": ("TimmEncoder", "TimmFeatureMap"),
    "part": ("ConvStemConfig",),
}
