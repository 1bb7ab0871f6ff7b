"""Colours changed in batches, against the definitions written out, Pillow and SciPy."""

from __future__ import annotations

import colorsys
import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from dafast.data.colours import DRAWS, _change, change_colours, draw_colours
from dafast.data.resident import random_colours
from dafast.data.transforms import STRONG, AugmentConfig, sample_generator
from dafast.training.command import parse_args
from dafast.training.config import ConfigError
from tests.tolerances import TOLERANCES

CLOSE = 255 * TOLERANCES[torch.float32].model
EVERYTHING = dataclasses.replace(STRONG, gamma=0.3, noise=0.5)
CHANGES = ("jitter", "grayscale", "blur", "noise")
STRENGTHS = ("brightness", "contrast", "saturation", "hue", "gamma")
LUMA = np.array([0.299, 0.587, 0.114])


def batch(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """(B, 3, H, W) uint8 with black, white, gray and pure colours among the random ones."""
    images = rng.integers(0, 256, (shape[0], *shape[1:], 3), np.uint8)
    special = [(0, 0, 0), (255, 255, 255), (90, 90, 90), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images[:, 0, : len(special)] = special[: shape[2]]
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def draws(rng: np.random.Generator, count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw_colours(rng) for _ in range(count)]))


def pixels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) to (H, W, 3) float64."""
    return image.permute(1, 2, 0).double().numpy()


def color_jitter(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """torchvision's ColorJitter in its first order, and gamma, of (H, W, 3) in 0..1."""
    image = np.clip(image * factors["brightness"], 0, 1)
    mean = (image @ LUMA).mean()
    image = np.clip(mean + factors["contrast"] * (image - mean), 0, 1)
    gray = (image @ LUMA)[..., None]
    image = np.clip(gray + factors["saturation"] * (image - gray), 0, 1)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
    turned = [colorsys.hsv_to_rgb((h + factors["hue"]) % 1, s, v) for h, s, v in hsv]
    return np.array(turned).reshape(image.shape) ** factors["gamma"]


def test_jitter_is_color_jitters(rng: np.random.Generator) -> None:
    images, numbers = batch(rng, 3, 12, 17), draws(rng, 3)
    strength = dict(zip(STRENGTHS, rng.uniform(0.1, 0.5, 5).tolist(), strict=True))
    got = change_colours(images, AugmentConfig(jitter=1.0, **strength), numbers)
    for image, result, own in zip(images, got, numbers.numpy(), strict=True):
        signed = dict(zip(STRENGTHS, 2 * own[4:9] - 1, strict=True))
        factors = {name: 1 + strength[name] * signed[name] for name in STRENGTHS[:3]}
        factors["hue"] = strength["hue"] * signed["hue"]
        factors["gamma"] = (1 + strength["gamma"]) ** signed["gamma"]
        want = 255 * color_jitter(pixels(image) / 255, factors)
        np.testing.assert_allclose(pixels(result), want, atol=CLOSE)


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_a_strength_alone_is_pillows(rng: np.random.Generator, name: str, enhance: type) -> None:
    images, numbers = batch(rng, 2, 15, 20), draws(rng, 2)
    strength = {**dict.fromkeys(STRENGTHS, 0.0), name: float(rng.uniform(0.2, 1.0))}
    got = change_colours(images, AugmentConfig(jitter=1.0, **strength), numbers)
    for image, result, own in zip(images, got, numbers.numpy(), strict=True):
        factor = 1 + strength[name] * (2 * own[4 + STRENGTHS.index(name)] - 1)
        picture = Image.fromarray(pixels(image).astype(np.uint8))
        want = np.asarray(enhance(picture).enhance(factor), float)
        # Pillow rounds the gray that it mixes with, and cuts the result to whole numbers.
        assert np.abs(pixels(result) - want).max() < 2.0


def test_grayscale_is_luminance(rng: np.random.Generator) -> None:
    images = batch(rng, 2, 9, 11)
    got = change_colours(images, AugmentConfig(grayscale=1.0), draws(rng, 2))
    for image, result in zip(images, got, strict=True):
        want = np.repeat((pixels(image) @ LUMA)[..., None], 3, -1)
        np.testing.assert_allclose(pixels(result), want, atol=CLOSE)


@pytest.mark.parametrize("shape", [(21, 17), (3, 2), (256, 264)])  # kornia has two ways to do it
def test_blur_is_scipys(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images, numbers = batch(rng, 2, *shape), draws(rng, 2)
    low, high = sorted(rng.uniform(0.0, 3.0, 2).tolist())
    got = change_colours(images, AugmentConfig(blur=1.0, blur_sigma=(low, high)), numbers)
    radius = max(1, int(np.ceil(3 * high)))
    for image, result, own in zip(images, got, numbers.numpy(), strict=True):
        sigma = low + (high - low) * own[9]
        for plane, mine in zip(image.double().numpy(), result.numpy(), strict=True):
            want = ndimage.gaussian_filter(plane, sigma, mode="nearest", radius=radius)
            np.testing.assert_allclose(mine, want, atol=CLOSE)


def test_no_blur_leaves_the_image(rng: np.random.Generator) -> None:
    images = batch(rng, 2, 9, 11)
    config = AugmentConfig(blur=1.0, blur_sigma=(0.0, 0.0))
    assert torch.equal(change_colours(images, config, draws(rng, 2)), images.float())


def test_noise_has_its_size_and_its_seed(rng: np.random.Generator) -> None:
    images = torch.full((3, 3, 64, 64), 128.0)
    numbers = draws(rng, 3)
    numbers[:, 10] = torch.tensor([0.2, 0.9, 0.9], dtype=torch.float64)
    numbers[2, 11] = numbers[1, 11]
    config = AugmentConfig(noise=1.0, noise_sigma=0.1)
    noise = change_colours(images, config, numbers) - 128.0
    for own, result in zip(numbers.tolist(), noise, strict=True):
        # The error of the deviation of 12,288 numbers is 0.6 % of it.
        assert float(result.std()) == pytest.approx(255 * 0.1 * own[10], rel=0.05)
    assert torch.equal(noise[1], noise[2])
    mixed = torch.corrcoef(noise.flatten(1))[0, 1]
    assert abs(float(mixed)) < 0.07, "another seed, other noise"
    saturated = change_colours(255 * (images > 0).float(), config, numbers)
    assert float(saturated.max()) == 255.0


@pytest.mark.parametrize("shape", [(20, 26), (264, 256)])
def test_an_image_does_not_depend_on_the_batch(
    rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    images, numbers = batch(rng, 6, *shape), draws(rng, 6)
    together = change_colours(images, EVERYTHING, numbers)
    assert together.dtype == torch.float32
    assert float(together.min()) >= 0.0 and float(together.max()) <= 255.001
    for i in range(6):
        alone = change_colours(images[i : i + 1], EVERYTHING, numbers[i : i + 1])[0]
        assert torch.equal(together[i], alone)
    order = torch.from_numpy(rng.permutation(6))
    moved = change_colours(images[order], EVERYTHING, numbers[order])
    assert torch.equal(moved, together[order])


def test_taken_together_or_one_by_one(rng: np.random.Generator) -> None:
    """As a GPU takes them, and as a CPU does."""
    images, numbers = batch(rng, 6, 20, 26), draws(rng, 6)
    one_by_one = change_colours(images, EVERYTHING, numbers)
    together = _change(images, EVERYTHING, numbers)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=CLOSE)


def test_the_same_numbers_give_the_same_bits(rng: np.random.Generator) -> None:
    images, numbers = batch(rng, 5, 20, 26), draws(rng, 5)
    before = images.clone()
    first = change_colours(images, EVERYTHING, numbers)
    assert torch.equal(images, before), "the images given are left as they are"
    assert torch.equal(change_colours(images, EVERYTHING, numbers), first)
    floats = images.float().contiguous()
    assert torch.equal(change_colours(floats, EVERYTHING, numbers), first)
    assert torch.equal(floats, before.float())
    assert not torch.equal(change_colours(images, EVERYTHING, numbers.flip(0)), first)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_made_to_those_it_is_drawn_for(rng: np.random.Generator, change: str) -> None:
    images, numbers = batch(rng, 4, 20, 26), draws(rng, 4)
    probability = float(rng.uniform(0.1, 0.9))
    numbers[:, 4:] = numbers[:, 4:].clamp(0.6, 0.9)  # a strength that shows
    numbers[:, :4] = 0.999
    numbers[:, CHANGES.index(change)] = torch.tensor(
        [0.0, probability - 1e-6, probability, 0.999], dtype=torch.float64
    )
    got = change_colours(images, AugmentConfig(**{change: probability}), numbers)
    changed = [not torch.equal(a, b.float()) for a, b in zip(got, images, strict=True)]
    assert changed == [True, True, False, False]
    everywhere = dataclasses.replace(AugmentConfig(**dict.fromkeys(CHANGES, 0.9)))
    assert torch.equal(change_colours(images, everywhere, numbers)[3], images[3].float())


def test_nothing_is_changed_where_nothing_is_asked_for(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    images = batch(rng, 2, 8, 9)
    assert change_colours(images, AugmentConfig(), draws(rng, 2)) is images
    assert change_colours(images, AugmentConfig(brightness=1.0, hue=0.5), draws(rng, 2)) is images


def test_an_empty_batch(rng: np.random.Generator) -> None:
    images = torch.empty(0, 3, 8, 9, dtype=torch.uint8)
    assert change_colours(images, EVERYTHING, torch.empty(0, DRAWS)).shape == (0, 3, 8, 9)


def test_without_kornia_the_extra_is_named(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ImportError, match=r"kornia: pip install 'dafast\[train\]'"):
        change_colours(batch(rng, 2, 8, 9), EVERYTHING, draws(rng, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--augment.jitter", "0.5"], "augment"),
        (["--augment.noise", "0.5"], "augment"),
        (["--unlabeled.path", "photos"], "unlabeled.augment"),  # its view is strong by default
    ],
)
def test_a_run_without_kornia_is_refused_before_it_loads_anything(
    options: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_args(options)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ConfigError, match=rf"^{named} changes colours.*kornia.*dafast\[train\]"):
        parse_args(options)
    parse_args([])  # the labeled images of the paper keep their colours


def test_the_numbers_of_a_position_are_its_own(seed: int) -> None:
    first = draw_colours(sample_generator(seed, 3))
    assert first.shape == (DRAWS,) and first.dtype == np.float64
    assert first.min() >= 0.0 and first.max() < 1.0
    assert np.array_equal(first, draw_colours(sample_generator(seed, 3)))
    assert not np.isin(draw_colours(sample_generator(seed, 4)), first).any()


def test_numbers_for_a_batch(seed: int) -> None:
    first, again = (random_colours(500, torch.Generator().manual_seed(seed)) for _ in "ab")
    assert torch.equal(first, again)
    assert first.shape == (500, DRAWS)
    assert first.min() >= 0.0 and first.max() < 1.0
    assert float((first.mean(0) - 0.5).abs().max()) < 0.09  # 7 standard deviations
