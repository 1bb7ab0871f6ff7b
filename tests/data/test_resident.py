"""Sets on the device: the order of samples, and crops, against the transforms on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.data.resident import Boxes, ResidentSet, crop, epoch_batch, random_boxes
from dafast.data.shards import ShardDataset
from dafast.data.transforms import AugmentConfig
from tests.training import tiny

RESIZED = AugmentConfig(crop="resized", area=(0.3, 0.9), aspect_jitter=1.3)


def whole(count: int) -> Boxes:
    return Boxes(torch.zeros(count, 2), torch.ones(count, 2))


@pytest.mark.parametrize("labels", ["minmax", "none"])
def test_a_set_is_what_the_shards_hold(tmp_path: Path, seed: int, labels) -> None:
    data = ShardDataset(tiny.write_shards(tmp_path, 2, 3, seed), labels=labels)
    alike = [i for i in range(len(data)) if data[i].image.shape == data[0].image.shape]
    resident = ResidentSet(data, "cpu", indices=alike)
    assert len(resident) == len(alike) > 1
    for position, index in enumerate(alike):
        sample = data[index]
        image = resident.image[position].permute(1, 2, 0).numpy()
        assert np.array_equal(image, sample.image)
        if labels == "none":
            assert resident.disparity is None
        else:
            assert np.array_equal(resident.disparity[position].numpy(), sample.disparity)
            assert np.array_equal(resident.mask[position].numpy(), sample.mask)


def test_a_set_is_brought_to_one_shape(tmp_path: Path, seed: int) -> None:
    data = ShardDataset(tiny.write_shards(tmp_path, 1, 4, seed))
    resident = ResidentSet(data, "cpu", shape=(30, 40))
    assert resident.image.shape == (4, 3, 30, 40)
    assert resident.disparity.shape == resident.mask.shape == (4, 30, 40)


def test_every_epoch_has_every_sample_once(rng: np.random.Generator) -> None:
    length, batch, seed = int(rng.integers(3, 30)), int(rng.integers(1, 40)), int(rng.integers(99))
    stream = torch.cat([epoch_batch(length, batch, step, seed) for step in range(2 * length)])
    epochs = stream[: len(stream) // length * length].view(-1, length)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(length).expand_as(epochs))
    assert torch.equal(epoch_batch(length, batch, 3, seed), epoch_batch(length, batch, 3, seed))


def test_boxes_stay_inside_and_have_the_share_and_aspect(seed: int) -> None:
    source, shape = (60, 100), (40, 50)
    config = AugmentConfig(crop="resized", area=(0.3, 0.9), flip=0.5)
    boxes = random_boxes(500, config, source, shape, torch.Generator().manual_seed(seed))
    assert bool((boxes.centre.abs() + boxes.half.abs() <= 1 + 1e-6).all())
    width, height = (boxes.half.abs() * torch.tensor([100.0, 60.0])).unbind(1)
    torch.testing.assert_close(width / height, torch.full((500,), 50 / 40), rtol=1e-4, atol=0)
    share = width * height / (75 * 60)  # of the largest box
    assert float(share.min()) >= 0.3 - 1e-4
    assert float(share.max()) <= 0.9 + 1e-4
    assert float(share.max() - share.min()) > 0.5
    flipped = float((boxes.half[:, 0] < 0).float().mean())
    assert 0.3 < flipped < 0.7
    assert bool((boxes.half[:, 1] > 0).all())


def test_only_the_resized_crop_is_there() -> None:
    with pytest.raises(ValueError, match="paper"):
        random_boxes(1, AugmentConfig(), (9, 9), (9, 9), torch.Generator())


def test_the_whole_picture_is_itself(seed: int) -> None:
    images = torch.randint(0, 256, (2, 3, 24, 31), dtype=torch.uint8)
    got = crop(images, whole(2), (24, 31))
    torch.testing.assert_close(got, images.float(), rtol=0, atol=1e-2)
    nearest = crop(images[:, 0], whole(2), (24, 31), nearest=True)
    assert torch.equal(nearest, images[:, 0].float())
    boxes = Boxes(torch.zeros(2, 2), torch.tensor([[-1.0, 1.0]]).repeat(2, 1))
    torch.testing.assert_close(
        crop(images, boxes, (24, 31)), images.flip(-1).float(), rtol=0, atol=1e-2
    )


def test_a_crop_is_pillows(rng: np.random.Generator, seed: int) -> None:
    """Enlarged, so that antialiasing makes no difference; away from the borders of the box,
    where Pillow does not look outside it."""
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    box = (7.0, 5.0, 27.0, 21.0)
    want = Image.fromarray(pixels).resize((60, 48), Image.Resampling.BILINEAR, box=box)
    centre = torch.tensor([[(7 + 27) / 50 - 1, (5 + 21) / 40 - 1]])
    half = torch.tensor([[20 / 50, 16 / 40]])
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    got = crop(image, Boxes(centre, half), (48, 60))[0].permute(1, 2, 0).numpy()
    inner = slice(4, -4), slice(4, -4)
    assert np.abs(got[inner] - np.asarray(want, float)[inner]).max() <= 1.01


def test_picture_and_map_are_cropped_alike(seed: int) -> None:
    """A picture that carries its label as its colour still does."""
    smooth = torch.linspace(0, 255, 64).expand(4, 64, 64).clone()
    boxes = random_boxes(4, RESIZED, (64, 64), (40, 40), torch.Generator().manual_seed(seed))
    image = crop(smooth[:, None].expand(4, 3, 64, 64), boxes, (40, 40))
    label = crop(smooth, boxes, (40, 40), nearest=True)
    step = 255 / 63
    assert float((image[:, 0] - label).abs().max()) <= 0.51 * step
