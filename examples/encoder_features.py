"""Reads the encoder's features of a photo: one map per block, and a pyramid for other heads.

python examples/encoder_features.py examples/photos/room.jpg
"""

import argparse

import torch

import dafast
from dafast.images import load_image
from dafast.ops import preprocess

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo")
parser.add_argument("--model", default="nano", help="preset, hub id, file or folder")
args = parser.parse_args()

model = dafast.DepthAnything.from_pretrained(args.model, dtype="float32")
pixels = torch.tensor(load_image(args.photo), device=model.device)
x, _ = preprocess(pixels, size=224, multiple=14, mean=model.config.mean, std=model.config.std)
with torch.no_grad():
    for block, features in enumerate(model.get_intermediate_layers(x, range(3), reshape=True)):
        print(f"block {block}: {tuple(features.shape)}")

    pyramid = dafast.FeaturePyramid(model, frozen=True).eval()
    image = torch.nn.functional.interpolate(x, (256, 320), mode="bilinear")
    for name, features in zip(pyramid.feature_info.module_name(), pyramid(image), strict=True):
        print(f"{name}: {tuple(features.shape)}")
