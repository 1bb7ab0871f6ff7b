"""Masks of sky: found by a SegFormer, stored next to shards, read by `ShardDataset`.

Depth Anything finds sky with a SegFormer trained on ADE20K and sets its disparity to 0, the
farthest. The paper does not name the SegFormer or the resolution. Here a picture's shorter side is
scaled to that of the published checkpoints' training crops, with its aspect ratio kept.

A pixel is sky where the class's logit is the largest. The logits are four times coarser than the
picture. The lead of sky over the best other class is interpolated (bilinear), not each of the 150
classes: that never gives more sky, and takes a hundredth of the memory.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dafast.data.decode import DECODE_ERRORS, decode_image
from dafast.data.jobs import InOrder, Outcome, Predict, Progress, Runner, ShardJob
from dafast.data.shards import ShardDataset
from dafast.data.tars import sky_path
from dafast.data.transforms import resize_image
from dafast.data.writing import add_sample
from dafast.files import explain, explain_kind
from dafast.optional import why_no_module

MODEL = "nvidia/segformer-b5-finetuned-ade-640-640"
SIDE = 640
"""Shorter side that the network sees: the training crop of `MODEL`."""

_LABEL = "sky"
_STRIDE = 32  # of SegFormer's coarsest stage
_LONGEST = 4  # longer side over shorter; a panorama is squeezed to that
_CHUNK = 32  # pictures that are decoded together
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SkyError(ValueError):
    """The network that finds sky cannot be used; the message says why."""


def sky_from_logits(logits: Tensor, sky: int, shape: tuple[int, int]) -> Tensor:
    """Where sky is the likeliest class.

    Args:
        logits: (B, classes, h, w), any floating type.
        sky: The class.
        shape: Height and width of the mask.

    Returns:
        (B, *shape) bool.
    """
    others = logits.clone()
    others[:, sky] = -torch.inf
    lead = (logits[:, sky] - others.amax(1)).float()[:, None]
    return F.interpolate(lead, shape, mode="bilinear", align_corners=False)[:, 0] > 0


class SkyReport(NamedTuple):
    """Result of `write_sky`.

    Attributes:
        written: Shards whose masks were written.
        kept: Shards whose masks exist or are being written by another process.
        pictures: Number of examined pictures.
        with_sky: Number of pictures with sky.
        failures: (shard/key or shard, reason) of unreadable samples, also of shards that were done
            before.
    """

    written: int
    kept: int
    pictures: int
    with_sky: int
    failures: list[tuple[str, str]]


class SkyFinder:
    """Finds the sky of pictures of any sizes.

    Args:
        model: A `SegformerForSemanticSegmentation` of transformers; one of its classes is "sky".
        side: Shorter side of its input, in pixels.
        batch: Number of pictures of one shape in a forward.

    Raises:
        SkyError: If the model has no class "sky".
    """

    def __init__(self, model: Any, side: int = SIDE, batch: int = 8) -> None:
        labels = {int(i): str(label).lower() for i, label in model.config.id2label.items()}
        classes = [i for i, label in labels.items() if label == _LABEL]
        if len(classes) != 1:
            raise SkyError(
                f"the model has {len(labels)} classes and {len(classes)} named sky; use one "
                f"trained on ADE20K, for example {MODEL}"
            )
        self.model, self.sky, self.side, self.batch = model.eval(), classes[0], side, batch

    @classmethod
    def from_pretrained(
        cls, name: str, device: torch.device, dtype: torch.dtype, side: int = SIDE, batch: int = 8
    ) -> SkyFinder:
        """Loads a model of the hub, or from a folder.

        Raises:
            SkyError: If transformers is missing or the model cannot be loaded or used.
        """
        if why := why_no_module("transformers"):
            raise SkyError(f"finding sky needs transformers: pip install 'dafast[sky]' ({why})")
        from transformers import SegformerForSemanticSegmentation

        try:
            model: Any = SegformerForSemanticSegmentation.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise SkyError(f"cannot load the SegFormer {name}: {explain(error)}") from error
        return cls(model.to(device, dtype), side, batch)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Size of the network's input for a picture: height and width, multiples of its stride."""
        scale = self.side / min(height, width)
        sides = (min(n * scale, _LONGEST * self.side) for n in (height, width))
        rows, columns = (max(_STRIDE, round(n / _STRIDE) * _STRIDE) for n in sides)
        return rows, columns

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Masks (H, W) bool of images (H, W, 3) uint8, each at its own resolution.

        Raises:
            SkyError: If the network's numbers overflow.
        """
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(self.shape(*image.shape[:2]), []).append(index)
        masks: list[np.ndarray] = [np.empty(0)] * len(images)
        for shape, indices in by_shape.items():
            for first in range(0, len(indices), self.batch):
                chosen = indices[first : first + self.batch]
                logits = self.model(self._input([images[i] for i in chosen], shape)).logits
                if not torch.isfinite(logits).all():
                    raise SkyError("the SegFormer gave NaN or infinity; try --dtype float32")
                for index, own in zip(chosen, logits, strict=True):
                    height, width = images[index].shape[:2]
                    mask = sky_from_logits(own[None], self.sky, (height, width))[0]
                    masks[index] = mask.cpu().numpy()
        return masks

    def _input(self, images: list[np.ndarray], shape: tuple[int, int]) -> Tensor:
        resized = [np.asarray(resize_image(Image.fromarray(image), shape)) for image in images]
        x = torch.from_numpy(np.stack(resized)).to(self.model.device).permute(0, 3, 1, 2)
        mean, std = (x.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (_MEAN, _STD))
        return ((x.float() / 255 - mean) / std).to(self.model.dtype)


def write_sky(
    find: Predict,
    shards: Sequence[Path],
    *,
    workers: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> SkyReport:
    """Writes next to each shard NAME.tar a NAME.sky.tar with the masks of pictures that have sky.

    A mask is KEY.png, 1 bit. A file appears when it is complete; existing files are kept, and two
    processes never write the same one (`dafast.data.writing.claim`).

    Args:
        find: Gives the masks of images, as `SkyFinder` does.
        shards: The shards, also behind URLs.
        workers: Threads that decode and encode.
        say: Takes a line after each shard.
    """
    return write_sky_with(InOrder(find, workers), shards, say=say)


def write_sky_with(
    runner: Runner, shards: Sequence[Path], *, say: Callable[[str], None] = lambda line: None
) -> SkyReport:
    """Writes masks with a runner that has the network; the rest as `write_sky`."""
    kept = with_sky = 0
    progress = Progress(len(shards), say)
    failures: dict[int, list[tuple[str, str]]] = {}
    for number, outcome in runner.run(SkyJob(), shards):
        progress.add(outcome)
        failures[number] = outcome.failures
        kept += outcome.state in ("kept", "busy")
        with_sky += outcome.facts or 0
    in_order = [each for number in sorted(failures) for each in failures[number]]
    return SkyReport(progress.written, kept, progress.images, with_sky, in_order)


class SkyJob(ShardJob):
    """Makes the masks of each shard; an outcome's facts are the number of pictures with sky."""

    def target(self, source: Path) -> Path:
        """The file of the masks, next to the shard."""
        return sky_path(source)

    def write(self, source: Path, file: BinaryIO, predict: Predict, pool: Executor) -> Outcome:
        """Writes the masks of one shard."""
        data = ShardDataset(source, labels="none")
        outcome = Outcome(source.name, facts=0)
        with contextlib.closing(data), tarfile.open(fileobj=file, mode="w") as tar:
            for first in range(0, len(data), _CHUNK):
                indices = range(first, min(first + _CHUNK, len(data)))
                futures = [pool.submit(decode_image, data.image_file(i)) for i in indices]
                readable: list[tuple[int, np.ndarray]] = []
                for index, future in zip(indices, futures, strict=True):
                    try:
                        readable.append((index, future.result()))
                    except DECODE_ERRORS as error:
                        outcome.failures.append((data.name(index), explain_kind(error)))
                masks = predict([image for _, image in readable])
                found = [(i, m) for (i, _), m in zip(readable, masks, strict=True) if m.any()]
                encoded = pool.map(_encode, [mask for _, mask in found])
                for (index, _), png in zip(found, encoded, strict=True):
                    add_sample(tar, data.key(index), {"png": png})
                outcome.images += len(readable)
                outcome.facts += len(found)
        return outcome


def _encode(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
