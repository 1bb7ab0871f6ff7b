"""Files as trainers write them, files that are damaged, and files that hold other things."""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dafast import DepthAnything
from dafast.config import PRESETS
from dafast.models import sources, weight_files
from dafast.models.checkpoint import CheckpointError
from dafast.models.conversion import LAYOUTS, UNUSED_KEYS, from_official
from tests.models.checkpoints import TINY, assert_same, error_of, load, random_state


def ones(state):
    """The same names with other values."""
    return {name: torch.ones_like(tensor) for name, tensor in state.items()}


WRAPPINGS = [
    lambda s: s,
    lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    lambda s: {f"model.{k}": v for k, v in s.items()},
    lambda s: {"state_dict": s, "best_acc1": torch.tensor(0.3), "epoch": torch.tensor(3)},
    lambda s: {**s, "epoch": torch.tensor(3)},
    lambda s: {"params": s},
    lambda s: {"params": ones(s), "params_ema": s},
    lambda s: {"net": s, "opt": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    lambda s: {"student": s, "teacher": ones(s)},
    lambda s: {"model": ones(s), "ema": s},
    lambda s: {"model": s, "ema": None},
    lambda s: {"model": ones(s), "model_ema": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"ema": {"decay": 0.99, "updates": torch.tensor(5), "shadow": s}, "net": ones(s)},
    lambda s: {"state_dict": {f"net.depth.{k}": v for k, v in s.items()}},
    lambda s: {
        "state_dict": {f"student.{k}": v for k, v in s.items()}
        | {f"teacher.{k}": v for k, v in ones(s).items()}
    },
    lambda s: {"n_averaged": torch.tensor(9)} | {f"module.{k}": v for k, v in s.items()},
    lambda s: {"checkpoint": {"weights": {f"_orig_mod.{k}": v for k, v in s.items()}}},
    lambda s: {
        k.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): v for k, v in s.items()
    },
]


# Each layout with every seventh wrapping: they are found in two steps that share nothing.
@pytest.mark.parametrize(
    ("wrap", "layout"), list(zip(WRAPPINGS, itertools.cycle(LAYOUTS), strict=False))
)
def test_the_network_is_found_in_any_wrapping(model, layout, wrap, tmp_path, notices):
    if layout == "zoedepth":
        model = DepthAnything(dataclasses.replace(TINY, max_depth=10.0, bin_centers="softplus"))
    if layout == "da3":
        model = DepthAnything(dataclasses.replace(TINY, output="exp", kind="depth", sky_head=True))
        for key in UNUSED_KEYS:  # which the file does not have
            model.get_parameter(key).data.zero_()
    if layout == "vda":
        model = DepthAnything(dataclasses.replace(TINY, out_channels=(8,) * 4, temporal_frames=8))
    torch.save(wrap(from_official(model.state_dict(), LAYOUTS[layout])), tmp_path / "x.pth")
    assert_same(load(tmp_path / "x.pth", config=model.config), model)
    assert not notices.messages


def test_tensors_outside_of_the_prefix_are_named(model, tmp_path, notices):
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(3)}}, tmp_path / "x.ckpt")
    assert_same(load(tmp_path / "x.ckpt", config=TINY), model)
    assert "1 tensors outside of 'state_dict.model' are not read: loss.weight" in notices.text


def test_two_networks_of_equal_rank_are_an_error(model, tmp_path):
    state = model.state_dict()
    torch.save({"left": state, "right": ones(state)}, tmp_path / "x.pth")
    text = error_of(tmp_path / "x.pth", config=TINY)
    assert "several networks ('left', 'right'): save the state_dict of one" in text


@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_values_next_to_the_weights(model, legacy, tmp_path):
    beside = {
        "loss": np.float64(0.25),
        "best": np.float32(1.5),
        "step": np.int64(3),
        "done": np.bool_(True),
        "history": np.arange(6.0).reshape(2, 3),
        "dtype": np.dtype("float16"),
        "args": argparse.Namespace(lr=np.float32(0.1), out=Path("runs")),
        "when": datetime.datetime(2024, 6, 13, 12, 0, 0),
    }
    path = tmp_path / "x.pth"
    torch.save(
        {"model": model.state_dict(), **beside}, path, _use_new_zipfile_serialization=not legacy
    )
    allowed = set(torch.serialization.get_safe_globals())  # it lists a set: no fixed order
    assert_same(load(path, config=TINY), model)
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize(
    ("old", "new", "way"),
    [
        ("attn.qkv.weight", "attn.qkv.base_layer.weight", "merge the adapters"),
        ("mlp.fc1.weight", "mlp.fc1.parametrizations.weight.original0", "remove_parametrizations"),
        ("mlp.fc1.weight", "mlp.fc1.weight_g", "remove_weight_norm"),
        ("attn.proj.weight", "attn.proj.weight_orig", "prune.remove"),
    ],
)
def test_weights_of_changed_modules_say_how_to_save_them(model, old, new, way, tmp_path):
    state = {k.replace(old, new): v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    text = error_of(tmp_path / "x.pth", config=TINY)
    assert re.search(rf"before the weights are saved, .*{way}", text)


def test_numpy_weights_are_named(model, tmp_path):
    torch.save({k: v.numpy() for k, v in model.state_dict().items()}, tmp_path / "x.pth")
    assert "NumPy arrays and the like are not read" in error_of(tmp_path / "x.pth")


def test_a_refused_file_says_the_way_out(model, tmp_path):
    torch.save({"model": model.state_dict(), "config": SimpleNamespace(lr=1)}, tmp_path / "x.pth")
    text = error_of(tmp_path / "x.pth", config=TINY)
    assert "types.SimpleNamespace" in text
    assert "Save only the model's state_dict" in text
    assert "weights_only=False" in text


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_the_contents_count_not_the_suffix(model, suffix, tmp_path):
    save_file(model.state_dict(), tmp_path / f"weights{suffix}")
    assert_same(load(tmp_path / f"weights{suffix}", config=TINY), model)


def test_files_from_before_pytorch_1_6(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path / "old.pth", config=TINY), model)


def test_one_shard_alone_is_an_error_that_says_so(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="160kB")
    shard = next(tmp_path.glob("model-00001-of-*.safetensors"))
    with pytest.raises(CheckpointError, match=r"one of \d+ shards: load the \.index\.json"):
        DepthAnything.from_pretrained(shard)


def test_sharded_pytorch_folder(model, tmp_path):
    state = from_official(model.state_dict(), LAYOUTS["transformers"])
    names = list(state)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, keys in parts.items():
        torch.save({key: state[key] for key in keys}, tmp_path / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(load(tmp_path, config=TINY), model)
    assert_same(load(index, config=TINY), model)

    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin"):
        load(tmp_path, config=TINY)

    weight_map[names[0]] = "../../elsewhere.bin"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="plain file name"):
        load(tmp_path, config=TINY)


# ------------------------------------------------------------------------------------------- errors


def test_missing_keys_are_named_in_the_layout_of_the_file(model, tmp_path):
    state = from_official(model.state_dict(), LAYOUTS["transformers"])
    del state["backbone.encoder.layer.3.attention.attention.key.weight"]
    torch.save(state, tmp_path / "x.bin")
    text = error_of(tmp_path / "x.bin", config=TINY)
    assert "missing (1): backbone.encoder.layer.3.attention.attention.key.weight" in text
    assert "unexpected" not in text


def test_many_missing_and_unexpected_keys_are_counted(model, tmp_path):
    state = {k.replace("mlp", "ffn"): v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    text = error_of(tmp_path / "x.safetensors", config=TINY)
    count = 4 * TINY.num_layers
    assert f"missing ({count}): pretrained.blocks.0.mlp.fc1.weight" in text
    assert f"unexpected ({count}): pretrained.blocks.0.ffn.fc1." in text
    assert len(text) < 1500


@pytest.mark.slow
def test_another_size_than_the_name_says(tmp_path):
    state = random_state(dataclasses.replace(PRESETS["vitb"], features=2))
    save_file(state, tmp_path / "depth_anything_vits14.safetensors")
    text = error_of(tmp_path / "depth_anything_vits14.safetensors")
    assert "'vits'" in text
    assert "(vitb, official" in text
    assert "wrong shapes" in text
    assert "[1, 1, 768] instead of [1, 1, 384]" in text


def test_without_the_decoder_it_is_a_backbone(model, tmp_path):
    plain = {
        k.removeprefix("pretrained."): v
        for k, v in DepthAnything("nano").state_dict().items()
        if k.startswith("pretrained.")
    }
    for name, state in {
        "dinov2.pth": plain,
        "with_prefix.pth": {f"pretrained.{k}": v for k, v in plain.items()},
    }.items():
        torch.save(state, tmp_path / name)
        text = error_of(tmp_path / name, config="nano")
        assert "a plain DINOv2 backbone (nano" in text
        assert "load_encoder" in text


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["core.core.pretrained.cls_token", "seed_bin_regressor._net.0.weight"], "ZoeDepth"),
        (["cls_token", "register_tokens", "blocks.0.norm1.weight"], "registers"),
        (["pretrained.model.blocks.0.norm1.weight", "scratch.layer1_rn.weight"], "MiDaS"),
        (["image_encoder.pos_embed", "mask_decoder.iou_token.weight"], "Segment Anything"),
        (
            ["layer1.0.conv1.weight", "fc.bias"],
            "something else than Depth Anything: 2 tensors, for example layer1.0",
        ),
    ],
)
def test_foreign_tensors(keys, kind, tmp_path):
    torch.save({key: torch.randn(2, 3) for key in keys}, tmp_path / "x.pth")
    assert kind in error_of(tmp_path / "x.pth")
    assert kind in error_of(tmp_path / "x.pth", config="vits")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.pth", b"", "empty"),
        ("x.pth", b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("x.bin", b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG"),
        ("x.safetensors", b"\xff\xd8\xff\xe0" + bytes(64), "JPEG"),
        ("x.pth", b'{"error": "not found"}', "JSON"),
        ("x.pth", b"\x1f\x8b" + bytes(64), "gzip"),
        ("x.pth", os.urandom(7) + bytes(100), "neither safetensors nor a PyTorch file"),
    ],
)
def test_files_that_hold_no_weights(name, content, kind, tmp_path):
    if kind.startswith("neither"):
        content = b"\x00" + content  # never a magic number by chance
    (tmp_path / name).write_bytes(content)
    assert kind in error_of(tmp_path / name)


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.98])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files(model, kind, kept, tmp_path):
    path = tmp_path / "whole"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    (tmp_path / "part").write_bytes(content[: int(kept * len(content))])
    text = error_of(tmp_path / "part", config=TINY)
    assert "truncated" in text or "damaged" in text


def test_a_flipped_header_is_an_error_too(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[100:140] = b"#" * 40
    (tmp_path / "x.safetensors").write_bytes(content)
    assert "damaged safetensors" in error_of(tmp_path / "x.safetensors")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_not_run(model, kind, tmp_path):
    path, proof = tmp_path / "evil.pth", tmp_path / "it_ran"
    data = {"model": model.state_dict(), "extra": Payload(proof)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"extra": Payload(proof)}))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=kind == "zip")
    text = error_of(path, config=TINY)
    assert not proof.exists()
    assert "could run code" in text or "damaged" in text
    if kind == "zip":
        assert "could run code" in text
        torch.load(path, weights_only=False)  # the payload would have worked
        assert proof.exists()


def test_zip_archives_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "no PyTorch checkpoint" in error_of(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([torch.zeros(2)], "a list"),
        (torch.zeros(2), "a Tensor"),
        ({"state": {}, "param_groups": []}, "an optimizer state"),
        ({"epoch": 3}, "no state_dict"),
        ({}, "no state_dict"),
    ],
)
def test_pytorch_files_without_a_state_dict(data, message, tmp_path):
    torch.save(data, tmp_path / "x.pth")
    assert message in error_of(tmp_path / "x.pth")


def test_what_was_refused_is_told_in_whole_words():
    name = "some_package.with_a_long_name.and_modules.within.it.and.more.ClassName"
    words = "Unsupported 'thing'" + " word" * 14
    for error, said in (
        (
            f"Unsupported global: GLOBAL {name} was not allowed.",
            f"Unsupported global: GLOBAL {name}",
        ),
        ("Weights only load failed.\n\tUnsupported operand 149", "Unsupported operand 149"),
        (f"{words} antidisestablishmentarianism", words),
        ("something else\nmore", "something else"),
    ):
        assert weight_files._refused(Exception(error)) == said


def test_an_empty_name_is_not_the_current_folder(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "the name is empty" in error_of("")
    DepthAnything.from_pretrained(".", device="cpu")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["pretrained.cls_token", "head.motion_modules.0.weight"], "Video-Depth-Anything"),
        (["model.backbone.pretrained.cls_token", "model.head.projects.0.weight"],
         "Depth Anything 3 checkpoint for several views"),
        (["model.backbone.pretrained.camera_token", "model.cam_dec.fc.weight"], "Depth Anything 3"),
        (["pipeline.pretrained.cls_token",
          "pipeline.depth_head.scratch.refinenet1.resConfUnit_depth.0.weight"],
         "Prompt Depth Anything"),
        (["backbone.cls_token", "backbone.blocks.0.0.norm1.weight"], "in chunks"),
        (["pretrained.cls_token", "pretrained.blocks.0.mlp.w12.weight", "depth_head.x"], "ViT-g"),
        (["core.core.pretrained.model.cls_token", "attractors.0._net.0.weight"], "ZoeDepth"),
        (["pretrained.model.cls_token", "pretrained.model.blocks.0.attn.relative_position_index",
          "pretrained.model.blocks.0.norm1.weight", "scratch.layer1_rn.weight"], "MiDaS"),
        (["conv1.weight", "bn1.num_batches_tracked.x"], "something else than Depth Anything"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("config", [None, "vits"])
def test_relatives_are_named_even_with_integers_in_them(keys, kind, config, tmp_path):
    state = {key: torch.randn(2, 3, 4) for key in keys}
    state["norm.position_ids"] = torch.arange(4).view(1, 4)
    torch.save({"model": state}, tmp_path / "x.pth")
    text = error_of(tmp_path / "x.pth", config=config)
    assert kind in text
    assert "quantised" not in text


def test_quantised_weights_are_refused(model, tmp_path):
    state = model.state_dict()
    state["pretrained.blocks.0.mlp.fc1.weight"] = torch.ones(256, 64, dtype=torch.int8)
    torch.save(state, tmp_path / "x.pth")
    text = error_of(tmp_path / "x.pth", config=TINY)
    assert "not floating point (int8; quantised?): pretrained.blocks.0.mlp.fc1.weight" in text
    assert "it looks like a Depth Anything checkpoint" in text


def test_folders_without_weights(model, tmp_path):
    assert "nothing" in error_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "config.json" in error_of(tmp_path)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert_same(load(tmp_path, config=TINY), model)  # the only file with weights
    torch.save(model.state_dict(), tmp_path / "b.pth")
    assert "several files" in error_of(tmp_path)
    assert_same(load(tmp_path, config=TINY, filename="b.pth"), model)


def test_names_that_are_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no preset has this name.*v2-vitb"):
        load("vitx")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load("./runs/teacher")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="no preset 'vitx'"):
        load(tmp_path, config="vitx")


def test_nano_without_its_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGED_WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="package was built without them"):
        load("nano")
    with pytest.raises(CheckpointError, match=r"no weights are published.*--model.preset vda-nano"):
        load("vda-nano")
    nano = DepthAnything("nano")
    nano.save_pretrained(tmp_path / "nano", dtype="float16")
    assert load("nano").config == PRESETS["nano"]


def test_a_pytorch_file_with_the_name_of_safetensors(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.safetensors")
    assert_same(load(tmp_path / "weights.safetensors", config=TINY), model)


def test_counts_of_a_profiler_are_no_weights(model, tmp_path):
    counts = {name: torch.zeros(1) for name in ("total_ops", "pretrained.total_params")}
    torch.save(model.state_dict() | counts, tmp_path / "weights.pth")
    assert_same(load(tmp_path / "weights.pth", config=TINY), model)


def test_archives_that_are_no_checkpoint_are_named(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    assert "a NumPy archive" in error_of(tmp_path / "weights.npz")
