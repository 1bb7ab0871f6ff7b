from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from dafast.data.colours import DRAWS
from dafast.data.shards import ShardDataset
from dafast.data.transforms import AugmentConfig, TrainTransform
from dafast.training.data import StreamSampler, TrainingData, collate

SHAPES = ((42, 42), (42, 56))


def take(sampler: StreamSampler, steps: int) -> list:
    return list(itertools.islice(iter(sampler), steps))


def test_every_sample_once_per_epoch(seed: int) -> None:
    length, batch = 37, 5
    flat = [r for b in take(StreamSampler(length, batch, SHAPES, seed), 40) for r in b]
    assert [r.position for r in flat] == list(range(200))
    for epoch in range(5):
        seen = [r.sample for r in flat[epoch * length : (epoch + 1) * length]]
        assert sorted(seen) == list(range(length))
    assert flat[0:length] != [r._replace(position=r.position - length) for r in flat[length:74]]


def test_a_batch_has_one_shape_and_all_are_drawn(seed: int) -> None:
    batches = take(StreamSampler(37, 4, SHAPES, seed), 60)
    assert all(len({r.shape for r in batch}) == 1 for batch in batches)
    assert {batch[0].shape for batch in batches} == set(SHAPES)


def test_starts_anywhere(seed: int) -> None:
    whole = take(StreamSampler(37, 6, SHAPES, seed), 30)
    assert take(StreamSampler(37, 6, SHAPES, seed, start_step=17), 13) == whole[17:]
    late = StreamSampler(37, 6, SHAPES, seed, start_step=17, start_position=17 * 6)
    assert take(late, 13) == whole[17:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch(seed: int, world_size: int) -> None:
    whole = take(StreamSampler(37, 6, SHAPES, seed), 20)
    ranks = [
        take(StreamSampler(37, 6, SHAPES, seed, rank=rank, world_size=world_size), 20)
        for rank in range(world_size)
    ]
    assert [[r for part in parts for r in part] for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_partners_do_not_depend_on_the_ranks(seed: int, world_size: int) -> None:
    """Sample i is mixed with sample i + 1 of the whole batch, the last one with the first."""
    whole = take(StreamSampler(37, 6, SHAPES, seed, unlabeled=True), 20)
    ranks = [
        take(StreamSampler(37, 6, SHAPES, seed, rank=r, world_size=world_size, unlabeled=True), 20)
        for r in range(world_size)
    ]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        samples, partners = [], []
        for part in parts:
            own = [request for request in part if not request.partner]
            assert len(own) == 6 // world_size
            samples += [request.sample for request in own]
            partners += [part[(i + 1) % len(part)].sample for i in range(len(own))]
        expected = [request.sample for request in whole[step]]
        assert samples == expected
        assert partners == expected[1:] + expected[:1]


def test_the_streams_have_orders_of_their_own(seed: int) -> None:
    labeled = take(StreamSampler(37, 37, SHAPES, seed), 1)[0]
    unlabeled = take(StreamSampler(37, 37, SHAPES, seed, unlabeled=True), 1)[0]
    assert [r.sample for r in labeled] != [r.sample for r in unlabeled]
    assert sorted(r.sample for r in labeled) == sorted(r.sample for r in unlabeled)
    assert {r.shape for r in labeled} == {r.shape for r in unlabeled}


def test_batch_must_divide() -> None:
    with pytest.raises(ValueError, match="divide"):
        StreamSampler(37, 5, SHAPES, 0, world_size=2)


def test_a_sample_is_a_function_of_seed_and_position(shards: Path, seed: int) -> None:
    config = AugmentConfig(crop="resized", jitter=1.0, blur=1.0, noise=1.0)
    request = take(StreamSampler(36, 4, SHAPES, seed), 3)[2][1]

    def make(seed: int) -> tuple:
        return TrainingData(ShardDataset(shards), TrainTransform(config), seed)[request]

    first, again, other = make(seed), make(seed), make(seed + 1)
    for name in ("image", "colours", "disparity", "mask"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.colours, other.colours)


def test_collate_gives_channels_last_uint8(shards: Path, seed: int) -> None:
    data = TrainingData(ShardDataset(shards), TrainTransform(), seed)
    batch = collate([data[r] for r in take(StreamSampler(36, 4, SHAPES, seed), 1)[0]])
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape[:2] == (4, 3)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.disparity.shape == batch.mask.shape == (4, *batch.image.shape[2:])
    assert batch.colours.shape == (4, DRAWS)
    assert len(batch.keys) == 4
    assert batch.skipped == []
