"""Segmentation networks: heads, gradients, files; the encoder as a backbone of others' heads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dafast.models import DepthAnything, FeaturePyramid, SegmentationModel
from dafast.models.checkpoint import CheckpointError
from dafast.models.segmentation import HEADS, LinearHead, SegmentationConfig, is_segmentation
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

TINY = tiny(num_layers=5, out_channels=(4, 8, 12, 16), out_indices=(0, 1, 3, 4))
CLASSES = ("sky", "ground", "rest")


def build(head: str, dtype: torch.dtype = torch.float32) -> SegmentationModel:
    """A random model whose BatchNorm layers have seen something."""
    model = SegmentationModel(SegmentationConfig(TINY, CLASSES, head))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(28, 28), (42, 70), (14, 14)])
@pytest.mark.parametrize("head", HEADS)
def test_logits(head: str, size: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    model = build(head, dtype)
    logits = model(torch.randn(2, 3, *size, dtype=dtype))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.isfinite().all()
    if dtype != torch.bfloat16:  # where so small a network's differences may round away
        assert logits.flatten(2).std(2).min() > 0  # it looks at the image


@pytest.mark.parametrize(("head", "taps"), [("linear", (4,)), ("linear4", (0, 1, 3, 4))])
def test_linear_heads_are_the_formula(head: str, taps: tuple[int, ...], seed: int) -> None:
    """(x - mean) / sqrt(var + eps) * gain + bias, then one matrix, written out in NumPy."""
    model = build(head, torch.float64)
    x = torch.randn(2, 3, 28, 42, dtype=torch.float64)
    features = model.pretrained.get_intermediate_layers(x, taps)
    tokens = np.concatenate([f.detach().numpy() for f in features], axis=2)  # (B, N, C)
    assert isinstance(model.head, LinearHead)
    state = {name: value.numpy() for name, value in model.head.state_dict().items()}
    normed = (tokens - state["bn.running_mean"]) / np.sqrt(state["bn.running_var"] + 1e-5)
    normed = normed * state["bn.weight"] + state["bn.bias"]
    expected = normed @ state["conv_seg.weight"][:, :, 0, 0].T + state["conv_seg.bias"]
    got = model.head(features, 2, 3).detach().flatten(2).mT.numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_the_dpt_head_fuses_as_the_depth_decoder(seed: int) -> None:
    """With the depth decoder's weights, what goes into the output layers is the same."""
    depth = DepthAnything(TINY)
    model = SegmentationModel.from_depth(depth, CLASSES, "dpt")
    missing, unexpected = model.head.load_state_dict(depth.depth_head.state_dict(), strict=False)
    assert {name.split(".")[1] for name in missing} == {"output_conv1"}
    assert {name.split(".")[1] for name in unexpected} == {"output_conv1", "output_conv2"}
    seen: list[Tensor] = []
    for layer in (depth.depth_head.scratch.output_conv1, model.head.scratch.output_conv1):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 42, 28)
    depth(x)
    model.eval()(x)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].shape == (2, 8, 24, 16)


def test_metric_encoders_serve_too(seed: int) -> None:
    """A V2 metric model's sigmoid and its metres have no place in logits."""
    import dataclasses

    config = dataclasses.replace(TINY, max_depth=80.0)
    metric = SegmentationModel.from_depth(DepthAnything(config).eval(), CLASSES, "dpt")
    relative = build("dpt")
    relative.load_state_dict(metric.state_dict())
    x = torch.randn(1, 3, 28, 28)
    assert torch.equal(metric(x), relative(x))


@pytest.mark.parametrize("head", HEADS)
def test_gradients(head: str, seed: int) -> None:
    """Everything that is used learns; the gradient is that of finite differences."""
    model = build(head, torch.float64)
    x = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    weights = torch.randn(2, 3, 28, 28, dtype=torch.float64)

    def loss() -> Tensor:
        return (model(x) * weights).sum()

    loss().backward()
    last = max(model.config.taps)
    for name, parameter in model.named_parameters():
        unused = "refinenet4.resConfUnit1" in name or f"blocks.{last + 1}." in name
        assert unused or (parameter.grad is not None and parameter.grad.abs().max() > 0), name
    for parameter in (model.head.get_parameter(_a_weight(head)), model.pretrained.cls_token):
        direction = torch.randn_like(parameter)
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()
            parameter.sub_(direction, alpha=2 * step)
            below = loss()
            parameter.add_(direction, alpha=step)
        slope = float((above - below) / (2 * step))
        assert parameter.grad is not None
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def _a_weight(head: str) -> str:
    return "scratch.refinenet2.out_conv.weight" if head == "dpt" else "conv_seg.weight"


@pytest.mark.parametrize("head", HEADS)
def test_a_frozen_encoder_gets_no_gradient(head: str, seed: int) -> None:
    model = build(head).train()
    model.pretrained.requires_grad_(False)
    model(torch.randn(2, 3, 28, 28)).sum().backward()
    assert all(p.grad is None for p in model.pretrained.parameters())
    assert any(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded(head: str, dtype: str | None, tmp_path, seed: int) -> None:
    model = build(head)
    model.save_pretrained(tmp_path / "model", dtype=dtype)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert is_segmentation(tmp_path / "model")
    loaded = SegmentationModel.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.config == model.config
    assert not loaded.training
    bound = TOLERANCES[torch.float16 if dtype else torch.float32].copy
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        floor = 2**-25 if dtype else 0.0  # half of float16's smallest step
        assert (a - b).abs().max() <= bound * a.abs().max() + floor, name


def test_what_cannot_be_loaded_is_named(tmp_path, seed: int) -> None:
    with pytest.raises(CheckpointError, match="not a saved segmentation model"):
        SegmentationModel.from_pretrained(tmp_path / "nothing")
    DepthAnything(TINY).save_pretrained(tmp_path / "depth")
    assert not is_segmentation(tmp_path / "depth")
    with pytest.raises(CheckpointError, match="not a saved segmentation model"):
        SegmentationModel.from_pretrained(tmp_path / "depth")
    build("linear").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["classes"] = ["one", "more", "class", "here"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit"):
        SegmentationModel.from_pretrained(tmp_path / "model")
    config["model"]["head"] = "quadratic"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json.*quadratic"):
        SegmentationModel.from_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    config["model"]["head"] = "linear"
    path.write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated"):
        SegmentationModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("count", [0, 256])
def test_the_number_of_classes_fits_into_a_byte(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} classes"):
        SegmentationConfig(TINY, tuple(map(str, range(count))))


# ------------------------------------------------------------------------------- as a backbone


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_pyramid_shapes_and_what_is_said_of_them(size: tuple[int, int], seed: int) -> None:
    pyramid = FeaturePyramid(DepthAnything(TINY))
    maps = pyramid(torch.randn(2, 3, *size))
    info = pyramid.feature_info
    assert info.reduction() == [4, 8, 16, 32]
    assert info.channels() == [32] * 4
    assert info.module_name(0) == "pretrained.blocks.0"
    assert info.reduction(-1) == info[3]["reduction"] == 32
    assert info.channels([0, 3]) == [32, 32]
    assert len(info) == len(info.get_dicts()) == len(maps) == 4
    for entry, tensor in zip(info.get_dicts(), maps, strict=True):
        pyramid.get_submodule(entry["module"])  # it names a part of the model
        stride = entry["reduction"]
        assert tensor.shape == (2, entry["num_chs"], size[0] // stride, size[1] // stride)


def test_pyramid_maps_are_the_taps_of_the_smaller_image(seed: int) -> None:
    """At stride 16 nothing is learned: the block's features of the image resized by 14/16."""
    depth = DepthAnything(TINY)
    x = torch.randn(1, 3, 64, 96)
    small = nn.functional.interpolate(x, (56, 84), mode="bilinear", antialias=True)
    taps = depth.get_intermediate_layers(small, reshape=True)
    maps = FeaturePyramid(depth)(x)
    assert torch.equal(maps[2], taps[2])
    assert torch.equal(maps[3], nn.functional.max_pool2d(taps[3], 2))


@pytest.mark.parametrize("frozen", [False, True])
def test_pyramid_gradients(frozen: bool, seed: int) -> None:
    pyramid = FeaturePyramid(DepthAnything(TINY), frozen=frozen)
    sum((m**2).sum() for m in pyramid(torch.randn(2, 3, 32, 32))).backward()
    for name, parameter in pyramid.named_parameters():
        still = frozen and name.startswith("pretrained.")
        assert (parameter.grad is None) == still, name


@pytest.mark.parametrize("shape", [(1, 3, 48, 64), (1, 3, 32, 33), (3, 32, 32), (1, 3, 0, 32)])
def test_pyramid_says_which_sizes_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        FeaturePyramid(DepthAnything(TINY))(torch.zeros(shape))


def test_mask2former_takes_the_pyramid(seed: int) -> None:
    """The pixel decoder of transformers' Mask2Former, built only from `feature_info`."""
    pytest.importorskip("transformers")
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    pyramid = FeaturePyramid(DepthAnything(TINY))
    config = Mask2FormerConfig(
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        num_attention_heads=2,
        feature_strides=pyramid.feature_info.reduction(),
        common_stride=4,
    )
    decoder = Mask2FormerPixelDecoder(config, feature_channels=pyramid.feature_info.channels())
    nn.init.normal_(decoder.level_embed)  # uninitialised memory until the whole model is built
    out = decoder(pyramid(torch.randn(2, 3, 64, 96)))
    assert out.mask_features.shape == (2, 32, 16, 24)
    assert [m.shape[2:] for m in out.multi_scale_features] == [(2, 3), (4, 6), (8, 12)]
    out.mask_features.sum().backward()
    gradient = pyramid.pretrained.cls_token.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().max() > 0
