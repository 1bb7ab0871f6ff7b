"""The networks."""

from .depth_anything import DepthAnything
from .dpt import DPTHead
from .vision_transformer import VisionTransformer

__all__ = ["DPTHead", "DepthAnything", "VisionTransformer"]
