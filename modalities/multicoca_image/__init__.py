"""The image modality: files to pixels, and any vision transformer of timm as the encoder."""

from multicoca_image.encoder import TimmEncoder
from multicoca_image.processor import ImageProcessor
from multicoca_image.stem import ConvStemConfig

__all__ = ["ConvStemConfig", "ImageProcessor", "TimmEncoder"]
