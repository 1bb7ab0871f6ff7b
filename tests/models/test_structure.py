"""Keys, shapes and sizes of the networks, written out from the official code."""

import inspect

import pytest
import torch

from dafast import DepthAnything
from dafast.config import PRESETS
from dafast.models import checkpoint, inference
from tests.tiny import tiny

SHAPES = {  # width, blocks, decoder width, channels of the reassembled maps
    "vits": (384, 12, 64, (48, 96, 192, 384)),
    "vitb": (768, 12, 128, (96, 192, 384, 768)),
    "vitl": (1024, 24, 256, (256, 512, 1024, 1024)),
}


def official_shapes(width, blocks, features, channels) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor in an official checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "pretrained.cls_token": (1, 1, width),
        "pretrained.pos_embed": (1, 1 + 37 * 37, width),
        "pretrained.mask_token": (1, width),
        "pretrained.patch_embed.proj.weight": (width, 3, 14, 14),
        "pretrained.patch_embed.proj.bias": (width,),
        "pretrained.norm.weight": (width,),
        "pretrained.norm.bias": (width,),
    }
    for i in range(blocks):
        block = f"pretrained.blocks.{i}."
        for norm in ("norm1", "norm2"):
            shapes[f"{block}{norm}.weight"] = shapes[f"{block}{norm}.bias"] = (width,)
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"{block}{name}.weight"] = (outputs, inputs)
            shapes[f"{block}{name}.bias"] = (outputs,)
        shapes[f"{block}ls1.gamma"] = shapes[f"{block}ls2.gamma"] = (width,)
    for i, c in enumerate(channels):
        shapes[f"depth_head.projects.{i}.weight"] = (c, width, 1, 1)
        shapes[f"depth_head.projects.{i}.bias"] = (c,)
        shapes[f"depth_head.scratch.layer{i + 1}_rn.weight"] = (features, c, 3, 3)
    for i, kernel in ((0, 4), (1, 2), (3, 3)):  # 2 is an identity
        c = channels[i]
        shapes[f"depth_head.resize_layers.{i}.weight"] = (c, c, kernel, kernel)
        shapes[f"depth_head.resize_layers.{i}.bias"] = (c,)
    for i in (1, 2, 3, 4):
        fusion = f"depth_head.scratch.refinenet{i}."
        shapes[f"{fusion}out_conv.weight"] = (features, features, 1, 1)
        shapes[f"{fusion}out_conv.bias"] = (features,)
        for unit in ("resConfUnit1.conv1", "resConfUnit1.conv2"):
            for name in (unit, unit.replace("Unit1", "Unit2")):
                shapes[f"{fusion}{name}.weight"] = (features, features, 3, 3)
                shapes[f"{fusion}{name}.bias"] = (features,)
    for name, outputs, inputs, kernel in (
        ("output_conv1", features // 2, features, 3),
        ("output_conv2.0", 32, features // 2, 3),
        ("output_conv2.2", 1, 32, 1),
    ):
        shapes[f"depth_head.scratch.{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"depth_head.scratch.{name}.bias"] = (outputs,)
    return shapes


PUBLISHED = [name for name, preset in PRESETS.items() if preset.hub_id]


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_has_the_official_keys_and_shapes(name):
    with torch.device("meta"):
        state = DepthAnything(name).state_dict()
    expected = official_shapes(*SHAPES[name.rsplit("-", 1)[-1]])
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    # The sky has the shapes of the output next to it; tests/models/test_zoedepth.py has the bins.
    sky = {key: shape for key, shape in shapes.items() if ".sky_output_conv2." in key}
    assert sky == {
        key.replace(".output", ".sky_output"): shape
        for key, shape in expected.items()
        if ".output_conv2." in key and name.startswith("da3")
    }
    bins = {key for key in shapes if key.startswith("metric_head.")}
    assert bool(bins) == name.startswith("metric-")
    temporal = {key for key in shapes if key.startswith("depth_head.motion_modules.")}
    assert bool(temporal) == name.startswith("vda-")  # tests/models/test_temporal.py has them
    assert {key: shapes[key] for key in shapes.keys() - bins - set(sky) - temporal} == expected


def test_number_of_keys():
    # 7 of the encoder, 14 per block; decoder: 8 projects, 6 resize_layers, 4 layer_rn,
    # 4 x 10 in the fusion blocks, 6 of the tail.
    assert len(official_shapes(*SHAPES["vits"])) == 7 + 12 * 14 + 64 == 239
    assert len(official_shapes(*SHAPES["vitl"])) == 7 + 24 * 14 + 64 == 407


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "millions"), [("vits", 24.8), ("vitb", 97.5), ("vitl", 335.3)])
def test_parameter_counts_of_the_paper(encoder, millions):
    for name in PUBLISHED:
        if name.endswith(encoder) and not name.startswith("vda-"):
            with torch.device("meta"):
                model = DepthAnything(name)
            count = sum(
                parameter.numel()
                for key, parameter in model.named_parameters()
                if not key.startswith(("metric_head.", "depth_head.scratch.sky_"))
            )
            assert abs(count / 1e6 - millions) < 0.05, name


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("vits", (8, 9, 10, 11)),
        ("vitb", (8, 9, 10, 11)),
        ("vitl", (20, 21, 22, 23)),
        ("v2-vits", (2, 5, 8, 11)),
        ("v2-vitb", (2, 5, 8, 11)),
        ("v2-vitl", (4, 11, 17, 23)),
        ("v2-metric-hypersim-vitl", (4, 11, 17, 23)),
        ("v2-metric-vkitti-vits", (2, 5, 8, 11)),
    ],
)
def test_taps(name, taps):
    assert PRESETS[name].out_indices == taps


def test_metric_presets_end_in_metres():
    model = DepthAnything("v2-metric-vkitti-vits").eval()
    with torch.inference_mode():
        depth = model(torch.randn(1, 3, 56, 70))
    assert depth.shape == (1, 56, 70)
    assert 0 < depth.min() < depth.max() < 80
    assert PRESETS["v2-metric-hypersim-vitb"].max_depth == 20


def test_nano_fits_into_7_megabytes(tmp_path):
    DepthAnything("nano").save_pretrained(tmp_path, dtype="float16")
    assert (tmp_path / "model.safetensors").stat().st_size <= 7_000_000


def test_constants_that_weights_do_not_show():
    """Too small for the parity tests to see at activations of order 1."""
    with torch.device("meta"):
        encoder = DepthAnything("vits").pretrained
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 12 + 1
    assert {norm.eps for norm in norms} == {1e-6}
    assert {block.mlp.act.approximate for block in encoder.blocks} == {"none"}


def _options(function) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    if inspect.isclass(function):
        return {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in parameters}
    return {p.name: p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize(
    ("method", "functions"),
    [
        (DepthAnything.infer, [inference.InferenceOptions]),
        (DepthAnything.infer_metric, [inference.InferenceOptions, inference.infer_metric]),
        (DepthAnything.from_pretrained, [checkpoint.load_pretrained]),
        (DepthAnything.save_pretrained, [checkpoint.save_pretrained]),
    ],
)
def test_methods_show_the_options_that_are_documented(method, functions):
    documented = {k: p for function in functions for k, p in _options(function).items()}
    documented.pop("unnamed", None)  # of `load_pretrained`, for training
    assert _options(method) == documented
    with pytest.raises(TypeError, match=rf"{method.__name__}\(\) got an unexpected.*'siez'"):
        method(None, siez=56)


@pytest.mark.parametrize(
    ("dtype", "x"),
    [
        (torch.bfloat16, torch.zeros(1, 3, 14, 14)),
        (torch.float32, torch.zeros(1, 3, 14, 14, dtype=torch.float16)),
        (torch.float32, torch.zeros(1, 3, 14, 14, dtype=torch.uint8)),
        (torch.float32, torch.zeros(1, 3, 14, 14, device="meta")),
        (torch.float32, [torch.zeros(3, 14, 14), torch.zeros(3, 28, 14, dtype=torch.float64)]),
    ],
    ids=["float32", "float16", "uint8", "device", "list"],
)
def test_images_in_another_dtype_or_elsewhere(dtype, x):
    model = DepthAnything("nano").to(dtype)
    with pytest.raises(ValueError, match=r"x\.to\(model\.device, model\.dtype\)"):
        model(x)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_forward_on_the_meta_device(gradients):
    """Counters of operations use it; the device knows no autocast."""
    with torch.device("meta"):
        model = DepthAnything("nano")
    with torch.set_grad_enabled(gradients):
        assert model(torch.empty(2, 3, 28, 42, device="meta")).shape == (2, 28, 42)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_autocast_takes_any_floating_point_images(compiled):
    model = DepthAnything(tiny()).eval()
    network = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(1, 3, 14, 14, dtype=torch.bfloat16)).isfinite().all()
        with pytest.raises(ValueError, match=r"model\.dtype"):
            model(torch.zeros(1, 3, 14, 14, dtype=torch.uint8))


@pytest.mark.parametrize("taps", [(0, 1, 2, 3), (0, 1, 2, 4)], ids=["last is no tap", "it is"])
def test_features_are_those_of_the_last_block(taps, seed):
    model = DepthAnything(tiny(num_layers=5, out_indices=taps)).eval()
    x = torch.randn(2, 3, 56, 70)
    with torch.no_grad():
        disparity, features = model(x, features=True)
        assert torch.equal(disparity, model(x))
        assert torch.equal(features, model.pretrained(x))
    assert features.shape == (2, 20, 32)
    with pytest.raises(ValueError, match="not for a list"):
        model([x[0]], features=True)
