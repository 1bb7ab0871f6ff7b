"""Models are saved and loaded in every layout, whole and their encoders."""

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from safetensors.torch import load_file

from dafast import DepthAnything, SegmentationModel, files
from dafast._warnings import LicenseWarning
from dafast.config import PRESETS
from dafast.models import checkpoint
from dafast.models.checkpoint import CheckpointError, load_encoder, save_pretrained
from dafast.models.conversion import ENCODER_LAYOUTS, LAYOUTS, from_official
from tests.full_disk import limited
from tests.models.checkpoints import TINY, assert_same, load
from tests.tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("layout", ["official", "transformers"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "160kB", 1])
def test_save_and_load(model, layout, max_shard_size, tmp_path):
    model.save_pretrained(tmp_path / "new" / "folder", layout=layout, max_shard_size=max_shard_size)

    files = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    back = load(tmp_path / "new" / "folder")

    assert back.config == TINY
    assert not back.training
    assert_same(back, model)
    assert ("model.safetensors" in files) == (max_shard_size == "5GB")
    assert ("model.safetensors.index.json" in files) != (max_shard_size == "5GB")
    if max_shard_size == "160kB":
        sizes = [p.stat().st_size for p in (tmp_path / "new" / "folder").glob("model-*")]
        assert len(sizes) > 2
        assert max(sizes) < 200_000
    assert not [name for name in files if name.endswith(".tmp")]


def test_every_weight_has_a_place_of_its_own_in_every_layout(model):
    for layout in LAYOUTS.values():
        names = [name for key in model.state_dict() for name in layout.names(key)]
        assert len(names) == len(set(names))
        split = layout.title.startswith("transformers")
        qkv = 2 * 2 * TINY.num_layers if split else 0
        assert len(names) == len(model.state_dict()) + qkv


def test_loaded_weights_can_be_trained_and_do_not_touch_the_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    back = load(tmp_path)
    unused = "depth_head.scratch.refinenet4.resConfUnit1."  # takes part in no prediction
    assert all(p.requires_grad != k.startswith(unused) for k, p in back.named_parameters())
    assert not back.pretrained.mask_token.requires_grad
    back(torch.randn(1, 3, 28, 42)).sum().backward()
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.add_(1)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert_same(load(tmp_path), model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float32])
def test_dtype_in_the_file_and_in_memory(model, dtype, tmp_path):
    save_pretrained(model, tmp_path, dtype=dtype)
    stored = load_file(tmp_path / "model.safetensors")
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {t.dtype for t in stored.values()} == {wanted}

    back = load(tmp_path)
    loaded = back.state_dict()
    assert {t.dtype for t in loaded.values()} == {torch.float32}
    for key, value in model.state_dict().items():
        error = (loaded[key] - value).abs().max() / value.abs().max()
        assert error <= TOLERANCES[wanted].copy, key

    same = load(tmp_path, dtype=dtype)
    assert same.dtype == wanted
    loaded = same.state_dict()
    for key, value in stored.items():
        assert torch.equal(loaded[key], value), key


def test_saving_over_an_earlier_save_leaves_only_the_new_one(model, tmp_path, randomise):
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path, max_shard_size="160kB")
    other = DepthAnything("nano").eval()
    other.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert load(tmp_path).config == PRESETS["nano"]
    model.save_pretrained(tmp_path, max_shard_size="160kB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(load(tmp_path), model)


def test_a_failed_save_leaves_the_earlier_one(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def disk_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", disk_full)
    with pytest.raises(OSError, match="No space"):
        DepthAnything("nano").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line_with_the_name_and_leaves_the_earlier_save(model, tmp_path):
    model.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with limited(100_000), pytest.raises(OSError, match="cannot write") as info:
        DepthAnything("nano").save_pretrained(tmp_path)
    assert str(tmp_path) in str(info.value)
    assert "\n" not in str(info.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def add_lora(module):
    class LoRA(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer
            self.lora_A = torch.nn.Linear(base_layer.in_features, 2, bias=False)

    module.mlp.fc1 = LoRA(module.mlp.fc1)


def widen(module):
    module.mlp.fc1 = torch.nn.Linear(module.mlp.fc1.in_features, 8)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda block: torch.nn.utils.parametrizations.weight_norm(block.mlp.fc1),
         "remove_parametrizations"),
        (lambda block: torch.nn.utils.spectral_norm(block.mlp.fc1), "remove_spectral_norm"),
        (lambda block: torch.nn.utils.prune.l1_unstructured(block.mlp.fc1, "weight", 0.5),
         "prune.remove"),
        (add_lora, "merge"),
        (widen, "restore the parts"),
        (lambda block: block.register_buffer("count", torch.zeros(2)), "restore the parts"),
        (lambda block: delattr(block.mlp, "fc2"), "restore the parts"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["depth", "segmentation"])
def test_weights_that_could_not_be_loaded_again_are_not_saved(
    model, change, remedy, kind, tmp_path
):
    whole = model if kind == "depth" else SegmentationModel.from_depth(model, ["a", "b"])
    change(whole.pretrained.blocks[1])
    with pytest.raises(ValueError, match=rf"pretrained\.blocks\.1[\s\S]*{remedy}"):
        whole.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_removed_weight_norm_can_be_saved(model, tmp_path):
    layer = model.pretrained.blocks[1].mlp.fc1
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.nn.utils.parametrizations.weight_norm(layer)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    model.save_pretrained(tmp_path)
    after = load(tmp_path).state_dict()
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    "options",
    [{"layout": "onnx"}, {"dtype": "int8"}, {"max_shard_size": "lots"}, {"max_shard_size": 0}],
)
def test_save_refuses_what_it_does_not_know(model, options, tmp_path):
    with pytest.raises(ValueError, match=r"layout=|dtype=|max_shard_size="):
        save_pretrained(model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_alone_knows_its_configuration(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "best.safetensors")
    (tmp_path / "config.json").unlink()
    back = load(tmp_path / "best.safetensors")
    assert back.config == TINY
    assert_same(back, model)


def test_mask_token_may_be_missing(model, tmp_path):
    state = model.state_dict()
    del state["pretrained.mask_token"]
    torch.save(state, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth", config=TINY).pretrained.mask_token.eq(0).all()


def test_license_of_the_larger_v2_is_said_once(monkeypatch):
    monkeypatch.setattr(checkpoint, "_warned_licenses", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint._warn_of_license(PRESETS["v2-vitb"])
        checkpoint._warn_of_license(PRESETS["v2-vitb"])
        checkpoint._warn_of_license(PRESETS["vitl"])
        checkpoint._warn_of_license(PRESETS["v2-vits"])
    assert [warning.category for warning in caught] == [LicenseWarning]
    assert "CC-BY-NC-4.0" in str(caught[0].message)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_saved_files_have_ordinary_permissions(tmp_path):
    """safetensors' own writer lets only the owner read."""
    DepthAnything("nano").save_pretrained(tmp_path / "model")
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode == expected, path.name


@pytest.mark.slow
def test_loading_and_inference_do_not_import_the_compiler():
    script = """
import sys
import numpy as np
import dafast
from dafast.models.network import DepthNetwork
from dafast.devices import on_meta
model = dafast.DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
model.infer(np.zeros((56, 70, 3), np.uint8))
with on_meta():
    for preset in dafast.PRESETS:
        DepthNetwork(preset)
print("torch._dynamo" in sys.modules)
"""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["False"]


# ------------------------------------------------------------------------------------------ encoder


@pytest.mark.parametrize("layout", list(ENCODER_LAYOUTS))
def test_load_encoder(model, layout, tmp_path):
    encoder = {k: v for k, v in model.state_dict().items() if k.startswith("pretrained.")}
    torch.save(from_official(encoder, ENCODER_LAYOUTS[layout]), tmp_path / "dinov2.pth")
    fresh = DepthAnything(TINY)
    head = {k: v.clone() for k, v in fresh.depth_head.state_dict().items()}
    parameters = list(fresh.pretrained.parameters())

    load_encoder(fresh, tmp_path / "dinov2.pth")

    loaded = fresh.pretrained.state_dict()
    for key, value in model.pretrained.state_dict().items():
        assert torch.equal(loaded[key], value), key
    for key, value in fresh.depth_head.state_dict().items():
        assert torch.equal(head[key], value), key
    # In place: an optimizer that was made before still holds them.
    assert all(a is b for a, b in zip(parameters, fresh.pretrained.parameters(), strict=True))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_load_encoder_of_a_depth_anything(model, layout, tmp_path):
    if layout == "da3":
        sky = DepthAnything(dataclasses.replace(TINY, output="exp", kind="depth", sky_head=True))
        sky.load_state_dict(model.state_dict(), strict=False)
        model = sky
    if layout == "vda":
        clips = DepthAnything(dataclasses.replace(TINY, out_channels=(8,) * 4, temporal_frames=8))
        clips.pretrained.load_state_dict(model.pretrained.state_dict())
        model = clips
    torch.save(from_official(model.state_dict(), LAYOUTS[layout]), tmp_path / "whole.pth")
    fresh = DepthAnything(TINY)
    head = {k: v.clone() for k, v in fresh.depth_head.state_dict().items()}
    load_encoder(fresh, tmp_path / "whole.pth")
    loaded = fresh.pretrained.state_dict()
    for key, value in model.pretrained.state_dict().items():
        assert torch.equal(loaded[key], value), key
    for key, value in fresh.depth_head.state_dict().items():
        assert torch.equal(head[key], value), key


@pytest.mark.slow
def test_load_encoder_from_transformers(transformers, tmp_path, seed, randomise):
    """The real Dinov2Model, saved by itself, gives the same features."""
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=5, num_attention_heads=1, image_size=56
    )
    theirs = transformers.Dinov2Model(config).eval()
    randomise(theirs, seed)
    theirs.save_pretrained(tmp_path)
    ours = DepthAnything(TINY).eval()
    load_encoder(ours, tmp_path)
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        expected = theirs(x).last_hidden_state[:, 1:]
        error = (ours.pretrained(x) - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCES[torch.float32].model


def test_load_encoder_refuses_what_does_not_fit(model, tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"a DINOv2 .* or a Depth Anything was expected"):
        load_encoder(DepthAnything(TINY), tmp_path / "other.pth")
    encoder = model.pretrained.state_dict()
    torch.save(encoder, tmp_path / "plain.pth")
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"the encoder of 'nano'[\s\S]*wrong shapes"):
        load_encoder(DepthAnything("nano"), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"the encoder of 'nano'[\s\S]*wrong shapes"):
        load_encoder(DepthAnything("nano"), tmp_path / "plain.pth")
    del encoder["norm.bias"]
    torch.save(encoder, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing \(1\): norm\.bias"):
        load_encoder(DepthAnything(TINY), tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="no published DINOv2"):
        load_encoder(DepthAnything("nano"))
