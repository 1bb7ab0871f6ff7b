"""Labels that can hardly be in metres are named before a run, not scored silently."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import pytest

from dafast.training.config import MetricSection
from dafast.training.loop import train
from tests.notices import Notices
from tests.training import tiny
from tests.training.runs import ONE, metrics, tiny_config


@pytest.fixture(scope="module")
def millimetres(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards with depths a thousand times as large, and no unit."""
    folder = tmp_path_factory.mktemp("millimetres")
    for shard in shards.glob("*.tar"):
        with tarfile.open(shard) as source, tarfile.open(folder / shard.name, "w") as target:
            for member in source:
                data = source.extractfile(member).read()
                if member.name.endswith(".json"):
                    meta = json.loads(data)
                    data = json.dumps(
                        meta | {"disparity_max": meta["disparity_max"] / 1e3}
                    ).encode()
                tiny.add_member(target, member.name, data)
    return folder


@pytest.mark.slow
def test_a_held_out_set_beyond_the_cap_warns(
    shards: Path, millimetres: Path, tmp_path: Path, seed: int, notices: Notices
) -> None:
    """It has no abs_rel, so `best/` is chosen by something else than `best_by` says."""
    config = tiny_config(shards, tmp_path / "run", seed=seed, steps=1, checkpoint_every=0)
    for held_out, warned in ((shards, False), (millimetres, True)):
        data = dataclasses.replace(config.data, eval_path=str(held_out), eval_samples=2)
        notices.clear()
        train(dataclasses.replace(config, data=data, out=str(tmp_path / held_out.name)), ONE)
        assert ("eval/abs_rel" in metrics(tmp_path / held_out.name)[-1]) != warned
        text = notices.text
        assert ("none of 36 samples has a depth under data.eval_max_depth (80 metres)" in text) == (
            warned
        )
        assert ("best/ is chosen by the loss" in text and "`scale`" in text) == warned


@pytest.mark.slow
def test_metres_that_cannot_be_warn(
    shards: Path, millimetres: Path, tmp_path: Path, seed: int, notices: Notices
) -> None:
    for path, warned in ((shards, False), (millimetres, True)):
        config = tiny_config(
            path,
            tmp_path / path.name,
            seed=seed,
            steps=1,
            checkpoint_every=0,
            metric=MetricSection(max_depth=2e4),
        )
        notices.clear()
        train(config, ONE)
        expected = "data.path: the median depth is"
        assert (expected in notices.text and "0.001 for millimetres" in notices.text) == warned
