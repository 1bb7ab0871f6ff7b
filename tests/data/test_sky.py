"""Sky: the rule by hand-worked and random cases, the masks' way from a network into training."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dafast.cli import main
from dafast.data.shards import SampleError, ShardDataset, fill_sky, minmax
from dafast.data.sky import SkyError, SkyFinder, sky_from_logits, write_sky
from dafast.data.tars import expand_shards, sky_path
from dafast.training.config import DataSection, TrainConfig
from dafast.training.data import Request, TrainingData
from tests.training import tiny


class Blue:
    """Stands in for a SegFormer: sky where the picture is blue, at a quarter of its size."""

    config = SimpleNamespace(id2label={0: "wall", 1: "building", 2: "sky"})
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def eval(self) -> Blue:
        return self

    def __call__(self, x: torch.Tensor) -> SimpleNamespace:
        self.batches.append(tuple(x.shape))
        red, green, blue = torch.nn.functional.avg_pool2d(x, 4).unbind(1)
        return SimpleNamespace(logits=torch.stack([red, green, blue], 1))


def landscape(height: int, width: int, horizon: int) -> np.ndarray:
    """Blue down to a row, brown below."""
    image = np.full((height, width, 3), (150, 100, 30), np.uint8)
    image[:horizon] = (40, 60, 220)
    return image


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                tiny.add_member(tar, f"{key}.{suffix}", data)
    return path


def png(array: np.ndarray) -> bytes:
    return tiny.encode(array, "PNG")


@pytest.mark.parametrize("labeled_too", [False, True])
def test_the_rule(labeled_too: bool) -> None:
    disparity = np.array([[3.0, 5.0, 7.0, 9.0]], np.float32)
    mask = np.array([[True, True, False, False]])
    sky = np.array([[False, True, True, False]])
    filled, valid = fill_sky(disparity, mask, sky, labeled_too)
    assert filled.tolist() == [[3.0, 0.0 if labeled_too else 5.0, 0.0, 9.0]]
    assert valid.tolist() == [[True, True, True, False]]
    assert filled.dtype == np.float32
    assert mask.tolist() == [[True, True, False, False]] and disparity[0, 1] == 5.0, "unchanged"


def labeled_shard(
    folder: Path, rng: np.random.Generator, teacher: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A sample with sky, some of it labeled; physical disparity, mask and sky at the label's size,
    and sky at the picture's."""
    scale = 3 if teacher else 1  # a teacher's label is smaller than the picture
    mask = rng.random((20, 30)) > 0.5
    mask[0, 0], mask[0, 1] = True, False
    small = rng.random((20, 30)) > 0.5
    small[0, :2] = True
    large = small.repeat(scale, 0).repeat(scale, 1)
    code = rng.integers(20000, 65536, (20, 30)).astype(np.uint16)
    if teacher:
        meta = {"disparity_scale": 0.25, "disparity_offset": 7.0, "disparity_size": [20, 30]}
        physical = 7.0 + 0.25 * code.astype(np.float64)
    else:
        meta = {"disparity_max": 2.5}
        physical = 2.5 / 65535 * code.astype(np.float64)
    members = {
        "png": png(rng.integers(0, 256, (*large.shape, 3), np.uint8)),
        "disparity.png": png(code),
        "json": json.dumps(meta).encode(),
        "mask.png": png(mask.astype(np.uint8) * 255),
    }
    write_shard(folder / "a.tar", {"x": members, "plain": members})
    write_shard(folder / "a.sky.tar", {"x": {"png": png(large)}})
    return physical, mask, small, large


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("labels", ["minmax", "physical"])
@pytest.mark.parametrize("sky", ["off", "missing", "all"])
def test_shards_take_masks_up(
    tmp_path: Path, rng: np.random.Generator, sky: str, labels: str, teacher: bool
) -> None:
    physical, mask, small, _ = labeled_shard(tmp_path, rng, teacher)
    data = ShardDataset(tmp_path, labels=labels, sky=sky)
    assert len(data) == 2, "masks are no shard"
    sample, plain = data.read(0), data.read(1)
    zero = {"off": np.zeros_like(small), "missing": small & ~mask, "all": small}[sky]
    expected, valid = np.where(zero, 0.0, physical), mask | zero
    if labels == "minmax":  # 0 is the farthest of all before the minimum is taken to 0
        expected = minmax(expected.astype(np.float32), valid)
    assert np.array_equal(sample.mask, valid)
    np.testing.assert_allclose(sample.disparity[valid], expected[valid], rtol=1e-5, atol=1e-6)
    assert np.array_equal(plain.mask, mask), "a picture without sky"
    if labels == "minmax" and sky != "off":
        assert (sample.disparity[zero] == 0).all() and zero.any()
        near = physical[valid & ~zero].min() / physical[valid & ~zero].max()
        assert sample.disparity[valid & ~zero].min() == pytest.approx(near, rel=1e-4), "0 is far"


def test_a_mask_of_another_picture_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    labeled_shard(tmp_path, rng, False)
    write_shard(tmp_path / "a.sky.tar", {"x": {"png": png(np.ones((9, 9), bool))}})
    with pytest.raises(SampleError, match=r"a\.tar/x.*remove the sky\.tar"):
        ShardDataset(tmp_path, sky="missing").read(0)
    ShardDataset(tmp_path).read(0)
    with pytest.raises(ValueError, match="'off', 'missing' or 'all', not 'on'"):
        ShardDataset(tmp_path, sky="on")  # type: ignore[arg-type]


@pytest.mark.parametrize("sky", [0, 2, 6])
def test_at_the_logits_own_size_it_is_their_maximum(sky: int, seed: int) -> None:
    logits = torch.randn(3, 7, 13, 17)
    assert torch.equal(sky_from_logits(logits, sky, (13, 17)), logits.argmax(1) == sky)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_between_the_logits_there_is_never_more(dtype: torch.dtype, seed: int) -> None:
    logits = torch.randn(2, 5, 9, 11)
    logits[:, 2] += 1.0
    logits = logits.to(dtype)
    mask = sky_from_logits(logits, 2, (36, 44))
    fine = torch.nn.functional.interpolate(
        logits.double(), (36, 44), mode="bilinear", align_corners=False
    )
    lead = fine[:, 2] - torch.cat([fine[:, :2], fine[:, 3:]], 1).amax(1)
    assert (lead[mask] > -1e-5).all()
    assert mask.any() and not mask.all()


def test_finds_sky_at_every_size(rng: np.random.Generator) -> None:
    shapes = [(90, 120), (120, 90), (90, 120), (64, 300), (41, 57), (90, 120), (300, 40)]
    horizons = [int(rng.integers(1, h // 2)) * 2 for h, _ in shapes]
    images = [landscape(*shape, horizon) for shape, horizon in zip(shapes, horizons, strict=True)]
    model = Blue()
    finder = SkyFinder(model, side=64, batch=2)
    masks = finder(images)
    for image, mask, horizon in zip(images, masks, horizons, strict=True):
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        # Off by the network's coarse pixels at most: 4 of 64 in its shorter side.
        blur = max(2.0, 4 * image.shape[0] / finder.shape(*image.shape[:2])[0] + 1)
        rows = np.arange(len(mask))
        assert mask[rows < horizon - blur].all(), (image.shape, horizon)
        assert not mask[rows > horizon + blur].any(), (image.shape, horizon)
    assert all(shape[0] <= 2 for shape in model.batches)
    assert sum(shape[0] for shape in model.batches) == len(images)
    assert all(side % 32 == 0 and side <= 4 * 64 for shape in model.batches for side in shape[2:])
    for image, mask in zip(images, masks, strict=True):
        assert np.array_equal(SkyFinder(Blue(), side=64)([image])[0], mask), "alone as together"


def test_networks_that_cannot_be_used(tmp_path: Path) -> None:
    other = Blue()
    other.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(SkyError, match=r"2 classes and 0 named sky.*ADE20K"):
        SkyFinder(other)

    class Overflowing(Blue):
        def __call__(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=super().__call__(x).logits * torch.nan)

    with pytest.raises(SkyError, match="--dtype float32"):
        SkyFinder(Overflowing(), side=32)([landscape(40, 40, 20)])
    with pytest.raises(SkyError, match="cannot load the SegFormer"):
        SkyFinder.from_pretrained(str(tmp_path / "none"), torch.device("cpu"), torch.float32)


def photos(folder: Path, rng: np.random.Generator, per_shard: int = 3) -> Path:
    """Two shards: landscapes and, second in each, a picture without sky."""
    folder.mkdir()
    for number in range(2):
        samples = {}
        for i in range(per_shard):
            image = landscape(60, 80, 0 if i == 1 else int(rng.integers(10, 50)))
            samples[f"{number}{i}"] = {"jpg": tiny.encode(image, "JPEG", quality=95)}
        write_shard(folder / f"s{number}.tar", samples)
    return folder


def test_masks_beside_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = photos(tmp_path / "in", rng)
    shards = expand_shards(folder)
    (folder / ".s0.sky.tar.part").write_bytes(b"half of what a killed run wrote")
    lines: list[str] = []
    report = write_sky(SkyFinder(Blue(), side=64), shards, say=lines.append)
    assert (report.written, report.kept, report.pictures, report.with_sky) == (2, 0, 6, 4)
    assert report.failures == [] and len(lines) == 2
    assert expand_shards(folder) == shards, "masks are no shards"
    assert expand_shards(str(folder / "*")) == shards
    for shard in shards:
        with tarfile.open(sky_path(shard)) as tar:
            assert [name[1:] for name in tar.getnames()] == ["0.png", "2.png"]
            member = tar.extractfile(tar.getnames()[0])
            assert member is not None and Image.open(member).mode == "1"
    before = {shard: sky_path(shard).stat().st_mtime_ns for shard in shards}
    sky_path(shards[1]).unlink()
    again = write_sky(SkyFinder(Blue(), side=64), shards)
    assert (again.written, again.kept, again.pictures) == (1, 1, 3)
    assert sky_path(shards[0]).stat().st_mtime_ns == before[shards[0]]
    assert sorted(p.suffix for p in folder.iterdir()) == [".tar"] * 4


def test_an_interrupted_shard_is_done_again(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = photos(tmp_path / "in", rng)
    shards, finder, calls = expand_shards(folder), SkyFinder(Blue(), side=64), 0

    def dies(images):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return finder(images)

    with pytest.raises(KeyboardInterrupt):
        write_sky(dies, shards)
    assert [sky_path(s).exists() for s in shards] == [True, False]
    assert write_sky(finder, shards).written == 1


@pytest.mark.slow
def test_the_command(tmp_path: Path, rng: np.random.Generator, capsys) -> None:
    """With a SegFormer of random weights, loaded from a folder as from the hub."""
    transformers = pytest.importorskip("transformers")
    labels = {i: f"class {i}" for i in range(150)} | {2: "sky"}
    config = transformers.SegformerConfig(
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(50)
        model.decode_head.classifier.bias[2] += 30.0
    model.save_pretrained(tmp_path / "segformer")
    folder = photos(tmp_path / "in", rng)
    (folder / "bad.tar").write_bytes(b"no tar" * 500)
    with tarfile.open(folder / "s1.tar", "a") as tar:
        tiny.add_member(tar, "broken.jpg", b"no picture")
    command = ["data", "sky", str(folder), "--model", str(tmp_path / "segformer"), "--size", "64"]
    for _ in range(2):  # what failed is known the second time too
        assert main([*command, "--device", "cpu", "--dtype", "float32", "--batch", "2"]) == 1
        text = capsys.readouterr().out
        assert "FAILED bad.tar: " in text and "FAILED s1.tar/broken: " in text
        assert "2 failures" in text
    assert "masks of 0 shards written" in text and "2 shards left as they are" in text
    finder = SkyFinder(model, side=64)
    data = ShardDataset([folder / "s0.tar", folder / "s1.tar"], labels="none")
    found = 0
    for shard in ("s0", "s1"):
        with tarfile.open(folder / f"{shard}.sky.tar") as tar:
            masks = {n[:-4]: np.asarray(Image.open(tar.extractfile(n))) for n in tar.getnames()}
        for index in range(6):
            if data.name(index).startswith(shard):
                expected = finder([data.read(index).image])[0]
                mask = masks.get(data.key(index), np.zeros_like(expected))
                assert (mask != expected).mean() < 0.01, "alone as in a batch"
                found += int(mask.any())
    assert found
    assert json.loads((folder / "sky.json").read_text())["size"] == 64
    assert main([*command[:-1], "96", "--device", "cpu"]) == 1
    assert "the masks of sky there were made with size 64, not 96" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["missing", "off"])
def test_training_sees_it(tmp_path: Path, seed: int, setting: str) -> None:
    """Sky that the data set left without a label is the farthest there is, and counts."""
    rng = np.random.default_rng(seed)
    image = landscape(56, 56, 28)
    mask = np.zeros((56, 56), np.uint8)
    mask[30:] = 255
    members = {
        "png": png(image),
        "disparity.png": png(rng.integers(30000, 65536, (56, 56)).astype(np.uint16)),
        "json": b'{"disparity_max": 1.0}',
        "mask.png": png(mask),
    }
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "a.tar", {"x": members})
    write_sky(SkyFinder(Blue(), side=64), expand_shards(tmp_path / "data"))
    section = DataSection(path=str(tmp_path / "data"), sky=setting)  # type: ignore[arg-type]
    data = TrainingData.open(TrainConfig(data=section, seed=seed))
    item = data[Request(0, int(rng.integers(100)), (56, 56))]
    assert (item.mask[:24].all() and (item.disparity[:24] == 0).all()) == (setting == "missing")
    assert item.mask[32:].all() and (setting == "off" or item.disparity[32:].min() > 0.4)
