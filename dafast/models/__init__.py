"""The networks."""

from .depth_anything import DepthAnything
from .dpt import DPTHead
from .feature_pyramid import FeaturePyramid
from .segmentation import SegmentationModel
from .vision_transformer import VisionTransformer

__all__ = ["DPTHead", "DepthAnything", "FeaturePyramid", "SegmentationModel", "VisionTransformer"]
