"""Depth Anything 3's monocular networks: parity, sky, sizes, loading."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dafast import DepthAnything
from dafast.config import PRESETS, ModelConfig
from dafast.devices import on_meta
from dafast.models.checkpoint import CheckpointError
from dafast.models.conversion import LAYOUTS, from_official
from dafast.models.sky import fill_sky
from tests.models import transcription
from tests.models.checkpoints import error_of, load
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

TOLERANCE = TOLERANCES[torch.float32].model
DA3 = dict(output="exp", kind="depth", sky_head=True, norm_eps=1e-5, fit="upper_bound")
SMALL = dataclasses.replace(PRESETS["v2-vits"], name="da3-s", image_size=504, **DA3)
CONFIGS = {"vits": SMALL, "vitl": PRESETS["da3mono-vitl"]}
SHAPES = [(28, 42), (42, 70), (56, 28)]


def published_state(model: DepthAnything) -> dict[str, torch.Tensor]:
    """The weights under the names of the published files, without those that they lack."""
    state = from_official(model.state_dict(), LAYOUTS["da3"])
    del state["backbone.pretrained.mask_token"]
    return {f"model.{key}": value for key, value in state.items()}


def published(state: dict, config: ModelConfig, x: torch.Tensor) -> tuple:
    """Depth and sky before the fill, from the published definition. ``state`` has its names."""
    state = {key.removeprefix("model."): value for key, value in state.items()}
    taps = transcription.encoder(state, "backbone.pretrained", config, x, 1e-5)
    path = transcription.decoder(state, "head", taps)
    depth, sky = (
        transcription.output(state, "head", name, path)
        for name in ("output_conv2", "sky_output_conv2")
    )
    return depth.exp(), F.relu(sky)


def official_fill(depth: torch.Tensor, sky: torch.Tensor) -> torch.Tensor:
    """The published rule for one map, written with indices."""
    rest = sky < 0.3
    if rest.sum() <= 10 or (~rest).sum() <= 10:
        return depth
    return torch.where(rest, depth, torch.quantile(depth[rest], 0.99))


def random_model(config: ModelConfig, seed: int, randomise, calibrate) -> DepthAnything:
    model = DepthAnything(config).eval()
    randomise(model, seed)
    x = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    scratch = model.depth_head.scratch
    calibrate(lambda: model(x), scratch.output_conv2[2], 0.5, 0.3)
    if config.sky_head:
        calibrate(lambda: model(x), scratch.sky_output_conv2[2], 0.3, 0.3)
    return model


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("size", ["vits", pytest.param("vitl", marks=pytest.mark.slow)])
def test_equals_the_published_definition(size, seed, randomise, calibrate):
    """Modules and packed weights, depth and sky, at three shapes.

    ViT-L has a quarter of its width.
    """
    config = CONFIGS[size]
    if size == "vitl":
        config = dataclasses.replace(config, embed_dim=256, num_heads=4)
    model = random_model(config, seed, randomise, calibrate)
    for shape in SHAPES:
        with torch.no_grad():
            for k in itertools.count():
                x = images(seed + k, 1, 3, *shape)
                depth, sky = published(published_state(model), model.config, x)
                if (sky - 0.3).abs().min() > 1e-5:  # else rounding decides what is sky
                    break
            assert 0 < (sky >= 0.3).float().mean() < 1
            expected = torch.stack([official_fill(d, s) for d, s in zip(depth, sky, strict=True)])
            model._optimized = None
            assert_near(model(x), expected)
            assert_near(model.predict_sky(x), sky)
            model.optimize(keep_memory=False)
            assert model._optimized is not None
            assert_near(model(x), expected)
            assert_near(model.predict_sky(x), sky)


@pytest.mark.parametrize("size", ["vits", pytest.param("vitl", marks=pytest.mark.slow)])
def test_equals_the_authors_code(size, seed, randomise, calibrate):
    """Needs the package depth-anything-3 0.1.1, with addict, omegaconf and einops."""
    pytest.importorskip("depth_anything_3", reason="depth-anything-3 is not installed")
    from depth_anything_3.model.da3 import DepthAnything3Net
    from depth_anything_3.model.dinov2.dinov2 import DinoV2
    from depth_anything_3.model.dpt import DPT

    model = random_model(CONFIGS[size], seed, randomise, calibrate)
    config = model.config
    theirs = DepthAnything3Net(
        DinoV2(size, list(config.out_indices), cat_token=False),
        DPT(
            config.embed_dim,
            output_dim=1,
            features=config.features,
            out_channels=list(config.out_channels),
        ),
    ).eval()
    state = published_state(model)
    theirs.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    for shape in SHAPES:
        x = images(seed, 1, 3, *shape)
        with torch.no_grad():
            expected = theirs(x[:, None])
            assert_near(model(x), expected["depth"][:, 0])
            assert_near(model.predict_sky(x), expected["sky"][:, 0])


def test_fills_each_image_by_itself(seed):
    depth, sky = images(seed, 3, 20, 30).exp(), images(seed + 1, 3, 20, 30)
    sky[1] = 0.3  # all sky: nothing to take the depth from
    sky[2] = 0
    sky[2, 0, :10] = 1  # ten pixels are too few
    got = fill_sky(depth, sky)
    torch.testing.assert_close(got[0], official_fill(depth[0], sky[0]))
    assert not torch.equal(got[0], depth[0])
    assert torch.equal(got[1:], depth[1:])
    sky[2, 0, 10] = 1
    torch.testing.assert_close(fill_sky(depth, sky)[2], official_fill(depth[2], sky[2]))


@pytest.mark.slow
def test_published_shapes():
    """Counted in the authors' code: parameters and tensors of both published files."""
    for name in ("da3mono-vitl", "da3metric-vitl"):
        with on_meta():
            state = published_state(DepthAnything(name))
        assert sum(tensor.numel() for tensor in state.values()) == 334_171_394
        assert len(state) == 406
        assert state["model.head.scratch.sky_output_conv2.0.weight"].shape == (32, 128, 3, 3)


@pytest.fixture
def weights(tmp_path, seed, randomise):
    """A file in the published layout, and the model that it was made from."""
    from safetensors.torch import save_file

    model = DepthAnything(tiny(**DA3)).eval()
    randomise(model, seed)
    folder = tmp_path / "some-model"
    folder.mkdir()
    save_file(published_state(model), folder / "model.safetensors")
    return folder, model


def test_loads_the_published_layout(weights, seed):
    folder, model = weights
    x = images(seed, 2, 3, 28, 42)
    loaded = load(folder, config=model.config)
    assert torch.equal(loaded(x), model(x))
    error = error_of(folder)
    assert "da3mono-vitl" in error and "da3metric-vitl" in error
    (folder / "config.json").write_text(json.dumps({"model_name": "da3metric-large"}))
    assert "da3metric-vitl" in error_of(folder)  # whose sizes these weights do not have
    (folder / "config.json").write_text(json.dumps({"model_name": "da3-giant"}))
    with pytest.raises(CheckpointError, match="da3-giant"):
        load(folder)


def test_loading_is_strict(weights, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, model = weights
    state = load_file(folder / "model.safetensors")
    for change, message in (("extra", "unexpected"), ("missing", "missing")):
        changed = dict(state)
        if change == "extra":
            changed["model.head.scratch.other.weight"] = torch.zeros(1)
        else:
            del changed["model.head.scratch.sky_output_conv2.2.bias"]
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "changed.safetensors", config=model.config)


@pytest.mark.parametrize("layout", ["official", "da3"])
def test_saved_model_loads_again(layout, weights, seed, tmp_path):
    _, model = weights
    model.save_pretrained(tmp_path / "saved", layout=layout)
    loaded = load(tmp_path / "saved")
    assert loaded.config == model.config
    x = images(seed, 1, 3, 28, 28)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(ValueError, match="has a sky head"):
        model.save_pretrained(tmp_path / "other", layout="transformers")


def photo(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def metric() -> DepthAnything:
    torch.manual_seed(0)
    config = tiny(**DA3 | {"kind": "metric", "focal_length": 300.0}, name="da3-metric")
    return DepthAnything(config).eval()


def test_metres_follow_the_focal_length(metric, seed, tmp_path):
    """metres = output * f / 300, f in pixels of the network's input, both directions."""
    image = photo(seed, 20, 40)  # to 14 x 28: half and 0.7 of the photo
    raw = _raw(metric, image)
    got = metric.infer_metric(image, intrinsics=(60.0, 90.0, 20.0, 10.0))
    focal = (60 * 28 / 40 + 90 * 14 / 20) / 2
    np.testing.assert_allclose(got.depth, raw * focal / 300, rtol=1e-5)
    tensor = metric.infer_metric(image, intrinsics=(60, 90, 20, 10), return_tensors=True)
    np.testing.assert_array_equal(tensor.numpy(), got.depth)
    wide = metric.infer_metric(image, fov=90.0)
    np.testing.assert_allclose(wide.depth, raw * (20 * (28 / 40 + 14 / 20) / 2) / 300, rtol=1e-5)

    exif = Image.Exif()
    exif[0x8769] = {0xA405: 26}
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path, exif=exif)
    pixels = 26 * (20**2 + 40**2) ** 0.5 / (36**2 + 24**2) ** 0.5
    got = metric.infer_metric(path)
    np.testing.assert_allclose(got, raw * pixels * 0.7 / 300, rtol=1e-5)
    got = metric.infer_metric([Image.open(path)])[0]
    np.testing.assert_allclose(got, raw * pixels * 0.7 / 300, rtol=1e-5)


def _raw(model: DepthAnything, image: np.ndarray) -> np.ndarray:
    """The network's own output at the size of the photo."""
    from dafast.inference import predict

    return predict(model, image)


def test_metres_without_a_camera_are_an_error(metric, seed):
    with pytest.raises(ValueError, match=r"image 0.*focal length.*intrinsics.*fov"):
        metric.infer_metric(photo(seed, 20, 40))
    with pytest.raises(TypeError, match="infer_metric"):
        metric.infer(photo(seed, 20, 40))


def test_depth_and_sky_of_photos(fixed_seed, randomise, calibrate):
    """Photos of two sizes: as one by one, at their own resolution."""
    model = random_model(tiny(**DA3), fixed_seed, randomise, calibrate)
    shots = [photo(fixed_seed, 30, 50), photo(fixed_seed + 1, 40, 25)]
    for infer, dtype in ((model.infer, np.float32), (model.infer_sky, bool)):
        maps = infer(shots)
        assert [m.shape for m in maps] == [(30, 50), (40, 25)]
        for shot, got in zip(shots, maps, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, infer(shot), rtol=1e-5)
    plain = DepthAnything(tiny())
    with pytest.raises(TypeError, match="no sky head"):
        plain.infer_sky(shots[0])


@pytest.mark.parametrize("metres", [False, True])
def test_training_starts_from_it(metres, weights, monkeypatch, seed):
    """All weights but those of the outputs; the model learns disparity, or metres up to a limit."""
    from dafast.training.config import TrainConfig
    from dafast.training.starts import build_model
    from dafast.training.tasks.metric import build_metric_model

    _, model = weights
    model.save_pretrained(weights[0])
    config = TrainConfig()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, preset="tiny", init=str(weights[0])),
        metric=dataclasses.replace(
            config.metric, max_depth=10.0 if metres else None, head="sigmoid"
        ),
    )
    monkeypatch.setitem(PRESETS, "tiny", tiny())
    if metres:
        started = build_metric_model(config, torch.device("cpu"))
    else:
        started = build_model(config.model, torch.device("cpu"), channels_last=False)
    assert started.config.quantity == ("metric" if metres else "disparity")
    assert started.config.activation == ("sigmoid" if metres else "relu")
    new, weights = set(), model.state_dict()
    for key, value in started.state_dict().items():
        if not torch.equal(value, weights[key]):
            new.add(key)
    assert new == {f"depth_head.scratch.output_conv2.2.{name}" for name in ("weight", "bias")}
    x = images(seed, 2, 3, 28, 28)
    started(x).mean().backward()
    assert started.pretrained.patch_embed.proj.weight.grad.abs().sum() > 0


def test_encoder_of_other_heads(weights, seed):
    from dafast import FeaturePyramid, SegmentationModel

    _, model = weights
    maps = FeaturePyramid(model).eval()(images(seed, 1, 3, 32, 64))
    assert [m.shape[2:] for m in maps] == [(8, 16), (4, 8), (2, 4), (1, 2)]
    segmentation = SegmentationModel.from_depth(model, ["a", "b", "c"]).eval()
    assert segmentation(images(seed, 1, 3, 28, 42)).shape == (1, 3, 28, 42)
    with torch.no_grad():
        expected = model.get_intermediate_layers(images(seed, 1, 3, 28, 42))
        got = segmentation.pretrained.get_intermediate_layers(
            images(seed, 1, 3, 28, 42), model.config.out_indices
        )
    assert all(map(torch.equal, got, expected))
