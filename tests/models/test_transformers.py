"""transformers' pipelines on our folders and with our forward, and conversion in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dafast
from dafast import DepthAnything, WeightsWarning
from tests.models.transformers_models import CONFIGS, assert_close
from tests.tiny import tiny


@pytest.fixture
def photo(rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v2", "metric"])
def test_a_pipeline_of_a_saved_folder(
    seed, tmp_path, served, transformers, randomise, calibrate, photo, name
):
    """transformers loads what `save_pretrained` wrote, and predicts what we predict."""
    config = dataclasses.replace(CONFIGS[name], position_embedding="transformers")
    ours = DepthAnything(config).eval()
    randomise(ours, seed)
    x = torch.randn(1, 3, 56, 56)
    calibrate(lambda: ours(x), ours.depth_head.scratch.output_conv2[2], 1.0, 0.5)
    ours.save_pretrained(tmp_path, layout="transformers")

    pipe = transformers.pipeline("depth-estimation", model=str(tmp_path), device="cpu")
    before = pipe(photo)
    assert before["predicted_depth"].shape == (60, 80)
    pixels = pipe.image_processor(photo, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 28, 42)  # the shorter side to 28, multiples of 14
    with torch.no_grad():
        resized = nn.functional.interpolate(
            ours(pixels)[None], (60, 80), mode="bicubic", align_corners=False
        )[0, 0]
    assert_close(before["predicted_depth"], resized)
    # Without a resize the transforms are equal: the photo's whole path predicts the same map.
    small = photo.resize((42, 28))
    predict = ours.infer_metric if config.is_metric else ours.infer
    whole = torch.from_numpy(predict(small, fit="official"))
    assert_close(pipe(small)["predicted_depth"], whole)

    processor = pipe.image_processor
    served.clear()
    assert dafast.accelerate(pipe) is pipe
    after = pipe([photo, photo], batch_size=2)
    assert len(served) == 1
    assert pipe.image_processor is processor
    for result in after:
        assert_close(result["predicted_depth"], before["predicted_depth"])
    difference = np.abs(np.int64(after[0]["depth"]) - np.int64(before["depth"]))
    assert difference.max() <= 1  # 8 bits, of values that differ by rounding
    dafast.restore(pipe)
    assert torch.equal(pipe(photo)["predicted_depth"], before["predicted_depth"])


def test_a_pipeline_of_another_model(transformers, tmp_path):
    class Pipeline:
        model = nn.Linear(1, 1)

    with pytest.raises(TypeError, match="not Linear"):
        dafast.accelerate(Pipeline())


@pytest.mark.parametrize("name", CONFIGS)
def test_conversion_in_memory(make_transformers, name):
    theirs = make_transformers(name)
    ours = DepthAnything.from_transformers(theirs)
    x = torch.randn(2, 3, 28, 70)
    with torch.no_grad():
        expected = theirs(x).predicted_depth
        assert_close(ours(x), expected)
        back = ours.to_transformers()
        assert torch.equal(back(x).predicted_depth, expected)
        # Copies, in both directions.
        for model in (ours, back):
            for weight in model.parameters():
                weight.zero_()
        assert torch.equal(theirs(x).predicted_depth, expected)
    assert ours.config.max_depth == CONFIGS[name].max_depth
    assert ours.config.out_indices == CONFIGS[name].out_indices
    assert not ours.training
    assert DepthAnything.from_transformers(theirs.train().half()).dtype == torch.float16
    assert DepthAnything.from_transformers(theirs).training


def test_conversion_of_other_models(transformers, tmp_path):
    with pytest.raises(TypeError, match="not Linear"):
        DepthAnything.from_transformers(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="metric bins"):
        DepthAnything(tiny(max_depth=10.0, bin_centers="softplus")).to_transformers()
    with pytest.raises(ValueError, match=r"max_depth.*2\.5"):
        DepthAnything(tiny(max_depth=2.5)).to_transformers()
    with pytest.warns(WeightsWarning, match=r"whole metres.*2\.5"):
        DepthAnything(tiny(max_depth=2.5)).save_pretrained(tmp_path, layout="transformers")
    loaded = DepthAnything.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert loaded.config.max_depth == 2.5
    changed = DepthAnything(tiny())
    changed.pretrained.blocks[0].mlp.fc1 = nn.Sequential(changed.pretrained.blocks[0].mlp.fc1)
    with pytest.raises(ValueError, match="other weights than its configuration"):
        changed.to_transformers()
    with pytest.raises(ValueError, match="sky head"):
        DepthAnything(tiny(sky_head=True, output="exp", kind="depth")).to_transformers()


def test_trained_after_conversion(transformers):
    """Weights of a converted model are parameters like any others."""
    ours = DepthAnything(tiny())
    model = ours.to_transformers()
    model(torch.randn(1, 3, 28, 28)).predicted_depth.sum().backward()
    back = DepthAnything.from_transformers(model)
    back(torch.randn(1, 3, 28, 28)).sum().backward()
    for each in (model, back):
        assert sum(w.grad is not None for w in each.parameters()) > 50
