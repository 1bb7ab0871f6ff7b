"""A ComfyUI node: copy this file to ComfyUI/custom_nodes/ and install dafast there."""

from functools import lru_cache

import torch

import dafast
from dafast.palettes import PALETTES


@lru_cache(maxsize=1)
def load(name: str) -> dafast.DepthAnything:
    return dafast.DepthAnything.from_pretrained(name)


class DafastDepth:
    """Depth of a batch of images: white is near, from the nearest to the farthest pixel."""

    CATEGORY = "image/depth"
    FUNCTION = "predict"
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("depth", "mask")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802, ComfyUI's name
        size = {"default": 518, "min": 98, "max": 1526, "step": 14}
        models = (["nano", "v2-vits", "v2-vitb", "v2-vitl"], {"default": "nano"})
        palettes = (["gray", *(p for p in PALETTES if p != "gray")],)
        return {"required": {"image": ("IMAGE",), "model": models, "size": ("INT", size)},
                "optional": {"palette": palettes}}  # fmt: skip

    def predict(self, image: torch.Tensor, model: str, size: int, palette: str = "gray"):
        # ComfyUI's images are (B, H, W, 3) in 0..1.
        photos = [photo.permute(2, 0, 1) for photo in image]
        results = load(model).predict(photos, size=size)
        shades = torch.stack([torch.from_numpy(r.to_disparity().normalized()) for r in results])
        colors = torch.stack([torch.from_numpy(r.colored(palette)) for r in results]) / 255
        return colors, shades


NODE_CLASS_MAPPINGS = {"DafastDepth": DafastDepth}
NODE_DISPLAY_NAME_MAPPINGS = {"DafastDepth": "Depth (dafast)"}
