"""Video-Depth-Anything's networks: parity per module, of clips and of streams; loading."""

import dataclasses
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from dafast import DepthAnything
from dafast._warnings import LicenseWarning
from dafast.config import PRESETS, ModelConfig
from dafast.geometry import plan_geometry
from dafast.layers.temporal import FrameCache, TemporalModule
from dafast.models import zoo
from dafast.models.checkpoint import CheckpointError, load_encoder
from dafast.models.conversion import LAYOUTS, from_official, position_codes
from dafast.models.describe import describe
from tests.models import transcription
from tests.models.checkpoints import assert_same, error_of, load
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

VIDEO = dict(output="relu", fit="video", temporal_frames=32, output_align_corners=True)
SMALL = tiny(name="vda-tiny", features=64, out_channels=(8, 8, 64, 64), **VIDEO)
PRESET_NAMES = [name for name in PRESETS if name.startswith("vda-") and name != "vda-nano"]


def random_model(config: ModelConfig, seed: int, randomise, calibrate) -> DepthAnything:
    model = DepthAnything(config).eval()
    randomise(model, seed)
    x = images(seed, 1, 3, 56, 56)
    calibrate(lambda: model(x), model.depth_head.scratch.output_conv2[2], 1.0, 0.3)
    return model


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_state(model: DepthAnything) -> dict[str, torch.Tensor]:
    """The weights as in a published file."""
    state = from_official(model.state_dict(), LAYOUTS["vda"])
    return state | position_codes(state, model.config.temporal_frames)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    bound = TOLERANCES[got.dtype].model
    assert (got - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(("frames", "size"), [(1, (3, 2)), (2, (1, 3)), (7, (2, 2)), (32, (1, 2))])
def test_module_equals_the_published_definition(frames, size, seed, randomise):
    module = TemporalModule(64).double()
    randomise(module, seed)
    state = {f"m.{key}": value.detach() for key, value in module.state_dict().items()}
    x = images(seed, 2 * frames, 64, *size).double().requires_grad_()
    expected, _ = transcription.temporal_module(state, "m", x, frames)
    out = module(x, frames)
    bound = TOLERANCES[torch.float32].model  # the codes are computed in float32
    assert (out - expected).abs().max() <= bound * expected.abs().max()
    weight = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    assert (grad - wanted).abs().max() <= bound * wanted.abs().max()
    with torch.no_grad():
        assert_near(module(x, frames), out.detach())


def test_positions_are_computed_in_parts_without_gradients(seed, randomise, monkeypatch):
    module = TemporalModule(64)
    randomise(module, seed)
    x = images(seed, 8, 64, 5, 3)
    expected = module(x, 4).detach()
    monkeypatch.setattr("dafast.layers.temporal._CHUNK", 16)  # 4 of 30 positions
    with torch.no_grad():
        assert_near(module(x, 4), expected)


def test_a_new_module_is_the_identity(seed):
    x = images(seed, 6, 64, 2, 3)
    assert torch.equal(TemporalModule(64)(x, 3), x)


@pytest.mark.slow
def test_clips_equal_the_published_definition(seed, randomise, calibrate):
    """Modules, packed weights and gradients."""
    model = random_model(SMALL, seed, randomise, calibrate)
    state = published_state(model)
    for batch, frames, size in ((2, 1, (42, 56)), (2, 5, (56, 42)), (1, 32, (42, 42))):
        x = images(seed, batch, frames, 3, *size)
        model._optimized = None
        assert_near(model(x).detach(), (expected := transcription.video_network(state, SMALL, x)))
        with torch.no_grad():
            assert_near(model(x), expected)  # the fine maps of a few frames at a time
            model.optimize(keep_memory=False)
            assert model._optimized is not None
            assert_near(model(x), expected)
    # Photos are clips of one frame, and frames of a clip are not.
    x = images(seed, 3, 3, 42, 42)
    assert_near(model(x).detach(), transcription.video_network(state, SMALL, x[:, None])[:, 0])
    assert (model(x) - model(x[None])[0]).abs().max() > 0.01


def test_small_network_equals_the_published_definition(seed, randomise, calibrate):
    """The published widths: 24, 48 and 8 channels a head."""
    config = dataclasses.replace(PRESETS["vda-vits"], embed_dim=96, num_heads=3)
    model = random_model(config, seed, randomise, calibrate)
    x = images(seed, 1, 3, 3, 42, 42)
    with torch.no_grad():
        assert_near(model(x), transcription.video_network(published_state(model), config, x))


@pytest.mark.slow
def test_stream_equals_the_published_definition(seed, randomise, calibrate):
    """Until the window is full, while it fills up, and in the steady state from frame 41 on."""
    model = random_model(SMALL, seed, randomise, calibrate)
    frames = list(images(seed, 46, 1, 3, 42, 42))
    with torch.no_grad():
        expected = transcription.video_stream(published_state(model), SMALL, frames)
        for count in (13, len(frames)):  # from the 12th on, old states are dropped
            cache = FrameCache()
            out = [model.predict_next(x, cache)[0] for x in frames[:count]]
            assert_near(torch.stack(out), torch.stack(expected[:count]))
            model.optimize(keep_memory=False)


def test_half_precision_follows(seed, randomise, calibrate):
    model = random_model(SMALL, seed, randomise, calibrate)
    x = images(seed, 1, 3, 3, 42, 42)
    with torch.no_grad():
        expected = model(x)
        out = model.bfloat16()(x.bfloat16())
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() <= TOLERANCES[torch.bfloat16].model * expected.abs().max()


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_have_the_published_keys(name):
    with torch.device("meta"):
        model = DepthAnything(name)
    state = published_state(model)
    config = model.config
    assert len(state) == (519 if name.endswith("vitl") else 351)
    published = {"vits": 29_035_137, "vitb": 114_441_409, "vitl": 384_390_337}
    parameters = sum(value.numel() for key, value in state.items() if not key.endswith(".pe"))
    assert parameters == published[config.name.split("-")[-1]]
    for module, width in enumerate((*config.out_channels[2:], *[config.features] * 2)):
        p = f"head.motion_modules.{module}.temporal_transformer."
        found = {k.removeprefix(p): tuple(v.shape) for k, v in state.items() if k.startswith(p)}
        expected = {f"{n}.{k}": (width,) for n in ("norm",) for k in ("weight", "bias")}
        expected |= {f"{n}.weight": (width, width) for n in ("proj_in", "proj_out")}
        expected |= {f"{n}.bias": (width,) for n in ("proj_in", "proj_out")}
        t = "transformer_blocks.0."
        for n in ("norms.0", "norms.1", "ff_norm"):
            expected |= {f"{t}{n}.{k}": (width,) for k in ("weight", "bias")}
        for a in (f"{t}attention_blocks.0.", f"{t}attention_blocks.1."):
            linear = ("to_q", "to_k", "to_v", "to_out.0")
            expected |= {f"{a}{n}.weight": (width, width) for n in linear}
            expected |= {f"{a}to_out.0.bias": (width,), f"{a}pos_encoder.pe": (1, 32, width)}
        expected |= {
            f"{t}ff.net.0.proj.weight": (8 * width, width),
            f"{t}ff.net.0.proj.bias": (8 * width,),
            f"{t}ff.net.2.weight": (width, 4 * width),
            f"{t}ff.net.2.bias": (width,),
        }
        assert found == expected and len(found) == 28


def test_position_codes(seed):
    codes = position_codes({"x.to_out.0.bias": torch.zeros(48)}, 32)
    assert list(codes) == ["x.pos_encoder.pe"]
    torch.testing.assert_close(codes["x.pos_encoder.pe"][0], transcription.sinusoids(32, 48))


@pytest.mark.slow
def test_published_files(tmp_path, seed, randomise, monkeypatch):
    """Names, layout with and without position codes, and the relative and the metric model."""
    sizes = {f: getattr(SMALL, f) for f in ("embed_dim", "num_layers", "num_heads", "features",
             "out_channels", "out_indices", "grid_size")}  # fmt: skip
    for name in ("vda-vits", "vda-metric-vits"):
        small = dataclasses.replace(PRESETS[name], **sizes)
        monkeypatch.setitem(PRESETS, name, small)
        model = DepthAnything(small).eval()
        randomise(model, seed)
        torch.save(published_state(model), tmp_path / small.hub_file)
        loaded = load(tmp_path / small.hub_file)
        assert_same(loaded, model)
        assert loaded.config == small and loaded.config.is_metric == ("metric" in name)
        facts = describe(tmp_path / small.hub_file)
        assert facts.layout == "vda" and facts.license == "Apache-2.0" and not facts.problem
    other = {k: v for k, v in published_state(model).items() if not k.endswith(".pe")}
    torch.save({f"module.{key}": value for key, value in other.items()}, tmp_path / "other.pth")
    assert "(config='vda-') or the metric one" in error_of(tmp_path / "other.pth")
    assert_same(load(tmp_path / "other.pth", config=small), model)
    load_encoder(plain := DepthAnything(small), tmp_path / "other.pth")
    assert torch.equal(plain.pretrained.cls_token, model.pretrained.cls_token)


def test_loading_is_strict(tmp_path, seed, randomise):
    model = DepthAnything(SMALL)
    randomise(model, seed)
    whole, path = published_state(model), tmp_path / "video_depth_anything_vits.pth"
    p = "head.motion_modules.2.temporal_transformer."

    def error(**changes: torch.Tensor | None) -> str:
        state = whole | {p + key.replace("__", "."): v for key, v in changes.items()}
        torch.save({k: v for k, v in state.items() if v is not None}, path)
        return error_of(path, config=SMALL)

    assert f"missing (1): {p}proj_out.bias" in error(proj_out__bias=None)
    assert f"unexpected (1): {p}extra" in error(extra=torch.zeros(1))
    assert "wrong shapes (1)" in error(proj_out__bias=torch.zeros(3))
    code = "transformer_blocks__0__attention_blocks__0__pos_encoder__pe"
    assert "other values than the sinusoids" in error(**{code: torch.zeros(1, 32, 32)})
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match=r"unexpected \(112\)|unexpected \(104\)"):
        load(path, config=dataclasses.replace(SMALL, temporal_frames=0))


def test_saved_layouts(tmp_path, seed, randomise):
    model = DepthAnything(SMALL).eval()
    randomise(model, seed)
    for layout in ("official", "vda"):
        model.save_pretrained(tmp_path / layout, layout=layout)
        loaded = load(tmp_path / layout)
        assert_same(loaded, model)
        assert loaded.config == SMALL
    names = load_file(tmp_path / "vda" / "model.safetensors")
    assert {k: v.shape for k, v in names.items()} == {
        k: v.shape for k, v in published_state(model).items()
    }
    with pytest.raises(ValueError, match="has temporal modules; use 'official'"):
        model.save_pretrained(tmp_path / "t", layout="transformers")
    with pytest.raises(ValueError, match="has no temporal modules; use 'official'"):
        DepthAnything(tiny()).save_pretrained(tmp_path / "t", layout="vda")


def test_licenses_and_names(tmp_path):
    for name in PRESET_NAMES:
        entry = zoo.find(name)
        assert entry.config.license == ("Apache-2.0" if name.endswith("vits") else "CC-BY-NC-4.0")
        assert "Apache-2.0" in entry.license_note and "CC-BY-NC-4.0" in entry.license_note
        assert entry.unit.startswith("metres" if "metric" in name else "none")
    assert zoo.find("depth-anything/Metric-Video-Depth-Anything-Base").id == "vda-metric-vitb"
    assert zoo.find("video-depth-anything-large").id == "vda-vitl"
    assert PRESETS["vda-vitl"].hub_file == "video_depth_anything_vitl.pth"
    assert PRESETS["vda-metric-vitl"].hub_file == "metric_video_depth_anything_vitl.pth"
    state = published_state(DepthAnything(SMALL))
    save_file(state, tmp_path / "model.safetensors")
    config = dataclasses.replace(SMALL, name="vda-x", license="CC-BY-NC-4.0")
    with pytest.warns(LicenseWarning, match="not for commercial use"):
        load(tmp_path / "model.safetensors", config=config)


@pytest.mark.parametrize(
    ("photo", "network"),
    [
        ((480, 640), (518, 686)),
        ((1080, 1920), (518, 924)),
        ((480, 854), (518, 924)),
        ((1080, 2560), (392, 924)),
        ((375, 1242), (280, 924)),
        ((1242, 375), (924, 280)),
    ],
)
def test_sizes_are_the_published_ones(photo, network):
    geometry = plan_geometry(*photo, fit="video")
    assert geometry.network == geometry.resized == network and not any(geometry.padding)


def test_wrong_input(seed):
    model = DepthAnything(SMALL)
    with pytest.raises(ValueError, match=r"a clip of 33 frames; the model takes 32: .*infer_video"):
        model(torch.zeros(1, 33, 3, 28, 28))
    with pytest.raises(ValueError, match="multiples of 14"):
        model(torch.zeros(1, 2, 3, 28, 27))
    plain = DepthAnything(tiny())
    for run in (
        lambda: plain(torch.zeros(1, 2, 3, 28, 28)),
        lambda: plain.predict_next(torch.zeros(1, 3, 28, 28), FrameCache()),
        lambda: plain.infer_video([]),
    ):
        with pytest.raises(
            TypeError, match=re.escape("'tiny' has no temporal modules; 'vda-vits'")
        ):
            run()
    for wrong, message in (
        (dict(temporal_frames=3), "8 frames and more"),
        (dict(temporal_frames=True), "8 frames and more"),
        (dict(features=20, temporal_frames=8), "multiples of 8"),
        (dict(sky_head=True, temporal_frames=8), "exclude bin_centers and a sky_head"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(**wrong)
