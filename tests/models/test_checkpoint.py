"""Weights in every layout and wrapping, and what is said of files that are none."""

import dataclasses
import json
import logging
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from dafast import DepthAnything, files
from dafast.config import PRESETS, ModelConfig
from dafast.models import checkpoint, sources, weight_files
from dafast.models.checkpoint import CheckpointError, load_encoder, save_pretrained
from dafast.models.configurations import config_from_json
from dafast.models.conversion import ENCODER_LAYOUTS, LAYOUTS, from_official
from dafast.models.names import preset_from_name
from dafast.runtime import on_meta
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

# Small, but as different in its sizes as the published ones: nothing fits by accident.
TINY = tiny(
    embed_dim=64,
    num_layers=5,
    num_heads=1,
    out_channels=(8, 12, 16, 20),
    out_indices=(0, 1, 3, 4),
    image_size=56,
    grid_size=4,
    output_align_corners=True,
    mean=(0.5, 0.5, 0.5),
)


@pytest.fixture
def model(seed, randomise) -> DepthAnything:
    model = DepthAnything(TINY).eval()
    randomise(model, seed)
    model.pretrained.mask_token.normal_()
    return model


def load(path, **options) -> DepthAnything:
    return DepthAnything.from_pretrained(path, **{"device": "cpu", "dtype": "float32"} | options)


def random_state(config: str | ModelConfig) -> dict[str, torch.Tensor]:
    """A state_dict in half precision, without the time that initialising a network takes."""
    with on_meta():
        model = DepthAnything(config)
    return {k: torch.randn(v.shape).half() for k, v in model.state_dict().items()}


def assert_same(a: DepthAnything, b: DepthAnything) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


# ----------------------------------------------------------------------------------- round trips


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
    assert all(p.requires_grad for p in back.parameters())
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
    assert {t.dtype for t in back.state_dict().values()} == {torch.float32}
    for key, value in model.state_dict().items():
        error = (back.state_dict()[key] - value).abs().max() / value.abs().max()
        assert error <= TOLERANCES[wanted].copy, key

    same = load(tmp_path, dtype=dtype)
    assert same.dtype == wanted
    for key, value in stored.items():
        assert torch.equal(same.state_dict()[key], value), key


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


# ----------------------------------------------------------------- files as others write them


@pytest.mark.parametrize("layout", ["official", "transformers", "transformers_live"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {f"model.{k}": v for k, v in s.items()},
    ],
)
def test_wrappings_of_trainers(model, layout, wrap, tmp_path):
    state = from_official(model.state_dict(), LAYOUTS[layout])
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    assert_same(load(tmp_path / "checkpoint.pth", config=TINY), model)


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


def test_official_folder_with_its_config(tmp_path, seed):
    """As in LiheYoung/depth_anything_vits14."""
    original = random_state("vits")
    torch.save(original, tmp_path / "pytorch_model.bin")
    config = {
        "encoder": "vits",
        "features": 64,
        "out_channels": [48, 96, 192, 384],
        "use_bn": False,
        "use_clstoken": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    back = load(tmp_path)
    assert back.config == PRESETS["vits"]
    for key, value in original.items():
        assert torch.equal(back.state_dict()[key], value.float()), key
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_clstoken": True}))
    with pytest.raises(CheckpointError, match="use_clstoken"):
        load(tmp_path)


def test_mask_token_may_be_missing(model, tmp_path):
    state = model.state_dict()
    del state["pretrained.mask_token"]
    torch.save(state, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth", config=TINY).pretrained.mask_token.eq(0).all()


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("depth_anything_vitl14.pth", "vitl"),
        ("depth_anything_v2_vitb.pth", "v2-vitb"),
        ("depth_anything_v2_metric_vkitti_vitl.pth", "v2-metric-vkitti-vitl"),
        ("depth_anything_v2_metric_hypersim_vits.safetensors", "v2-metric-hypersim-vits"),
        ("LiheYoung/depth_anything_vits14", "vits"),
        ("LiheYoung/depth-anything-base-hf", "vitb"),
        ("depth-anything/Depth-Anything-V2-Small", "v2-vits"),
        ("depth-anything/Depth-Anything-V2-Large-hf", "v2-vitl"),
        ("depth-anything/Depth-Anything-V2-Metric-VKITTI-Base", "v2-metric-vkitti-vitb"),
        ("depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf", "v2-metric-hypersim-vits"),
        ("depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf", "v2-metric-vkitti-vitl"),
        ("best.pth", None),
        ("someone/depth_anything_vitg14", None),
    ],
)
def test_published_names(name, preset):
    assert getattr(preset_from_name(name), "name", None) == preset


def test_configuration_from_the_name_or_the_caller(tmp_path, caplog):
    torch.save(random_state("vits"), tmp_path / "depth_anything_v2_metric_hypersim_vits.pth")
    os.link(tmp_path / "depth_anything_v2_metric_hypersim_vits.pth", tmp_path / "mine.pth")
    with caplog.at_level(logging.WARNING, "dafast"):
        named = load(tmp_path / "depth_anything_v2_metric_hypersim_vits.pth")
        assert named.config == PRESETS["v2-metric-hypersim-vits"]
        with pytest.raises(CheckpointError, match=r"no name that says V1 or V2.*config='v2-vits'"):
            load(tmp_path / "mine.pth")
        given = load(tmp_path / "mine.pth", config="v2-vits", position_embedding="transformers")
        assert given.config == dataclasses.replace(
            PRESETS["v2-vits"], position_embedding="transformers"
        )
        assert not caplog.records


# As published: what equals the defaults of transformers is left out.
SMALL_HF = {
    "architectures": ["DepthAnythingForDepthEstimation"],
    "backbone_config": {
        "architectures": ["Dinov2Model"],
        "hidden_size": 384,
        "image_size": 518,
        "model_type": "dinov2",
        "num_attention_heads": 6,
        "out_features": ["stage9", "stage10", "stage11", "stage12"],
        "out_indices": [9, 10, 11, 12],
        "patch_size": 14,
        "reshape_hidden_states": False,
        "torch_dtype": "float32",
    },
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
    "head_in_index": -1,
    "initializer_range": 0.02,
    "model_type": "depth_anything",
    "neck_hidden_sizes": [48, 96, 192, 384],
    "patch_size": 14,
    "reassemble_factors": [4, 2, 1, 0.5],
    "reassemble_hidden_size": 384,
    "torch_dtype": "float32",
    "transformers_version": "4.38.0.dev0",
}


def test_config_of_transformers():
    assert config_from_json(SMALL_HF) == PRESETS["vits"]
    base = dict(SMALL_HF["backbone_config"])
    v2 = base | {"out_indices": [3, 6, 9, 12], "out_features": None}
    assert config_from_json(SMALL_HF | {"backbone_config": v2}) == PRESETS["v2-vits"]
    metric = {"backbone_config": v2, "depth_estimation_type": "metric", "max_depth": 80}
    assert config_from_json(SMALL_HF | metric) == PRESETS["v2-metric-vkitti-vits"]
    assert config_from_json(SMALL_HF | metric | {"max_depth": 10}).max_depth == 10
    large = {
        "backbone_config": base
        | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"out_indices": [21, 22, 23, 24]},
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "fusion_hidden_size": 256,
    }
    assert config_from_json(SMALL_HF | large) == PRESETS["vitl"]
    del base["out_indices"]  # the names alone
    assert config_from_json(SMALL_HF | {"backbone_config": base}) == PRESETS["vits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "zoedepth"}, "zoedepth"),
        ({"head_hidden_size": 64}, "head_hidden_size=64"),
        ({"backbone_config": {"model_type": "dinov2_with_registers"}}, "dinov2_with_registers"),
        ({"backbone_config": {"use_swiglu_ffn": True}}, "use_swiglu_ffn"),
        ({"max_depth": 20}, "max_depth=20"),
    ],
)
def test_config_of_transformers_that_is_not_supported(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(SMALL_HF | change)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "bert"}', '{"encoder": "vitg"}'])
def test_a_bad_config_json_is_named(model, text, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)


def test_licence_is_the_old_name_of_license():
    fields = dataclasses.asdict(PRESETS["v2-vitb"])
    fields["licence"] = fields.pop("license")
    assert config_from_json({"model_type": "dafast", "model": fields}) == PRESETS["v2-vitb"]
    extra = {"dafast": {"licence": "MIT"}}
    assert config_from_json(SMALL_HF | extra).license == "MIT"
    with pytest.raises(ValueError, match="unknown fields: licences"):
        config_from_json({"model_type": "dafast", "model": {"licences": "MIT"}})


def test_license_of_the_larger_v2_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint, "_warned_licenses", set())
    with caplog.at_level(logging.WARNING, "dafast"):
        checkpoint._warn_of_license(PRESETS["v2-vitb"])
        checkpoint._warn_of_license(PRESETS["v2-vitb"])
        checkpoint._warn_of_license(PRESETS["vitl"])
        checkpoint._warn_of_license(PRESETS["v2-vits"])
    assert [record.message.count("CC-BY-NC-4.0") for record in caplog.records] == [1]


# ----------------------------------------------------------------------------------------- errors


def error_of(path, **options) -> str:
    """The message of the one error; it names the file."""
    with pytest.raises(CheckpointError) as info:
        load(path, **options)
    text = str(info.value)
    assert str(path) in text
    return text


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


def test_quantised_weights_are_refused(model, tmp_path):
    state = model.state_dict()
    state["pretrained.blocks.0.mlp.fc1.weight"] = torch.ones(256, 64, dtype=torch.int8)
    torch.save(state, tmp_path / "x.pth")
    assert "not floating point" in error_of(tmp_path / "x.pth", config=TINY)


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
    with pytest.raises(CheckpointError, match="not trained yet"):
        load("nano")
    nano = DepthAnything("nano")
    nano.save_pretrained(tmp_path / "nano", dtype="float16")
    assert load("nano").config == PRESETS["nano"]


# ---------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("layout", list(ENCODER_LAYOUTS))
def test_load_encoder(model, layout, tmp_path):
    encoder = {k: v for k, v in model.state_dict().items() if k.startswith("pretrained.")}
    torch.save(from_official(encoder, ENCODER_LAYOUTS[layout]), tmp_path / "dinov2.pth")
    fresh = DepthAnything(TINY)
    head = {k: v.clone() for k, v in fresh.depth_head.state_dict().items()}
    parameters = list(fresh.pretrained.parameters())

    load_encoder(fresh, tmp_path / "dinov2.pth")

    for key, value in model.pretrained.state_dict().items():
        assert torch.equal(fresh.pretrained.state_dict()[key], value), key
    for key, value in fresh.depth_head.state_dict().items():
        assert torch.equal(head[key], value), key
    # In place: an optimizer that was made before still holds them.
    assert all(a is b for a, b in zip(parameters, fresh.pretrained.parameters(), strict=True))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_load_encoder_of_a_depth_anything(model, layout, tmp_path):
    torch.save(from_official(model.state_dict(), LAYOUTS[layout]), tmp_path / "whole.pth")
    fresh = DepthAnything(TINY)
    head = {k: v.clone() for k, v in fresh.depth_head.state_dict().items()}
    load_encoder(fresh, tmp_path / "whole.pth")
    for key, value in model.pretrained.state_dict().items():
        assert torch.equal(fresh.pretrained.state_dict()[key], value), key
    for key, value in fresh.depth_head.state_dict().items():
        assert torch.equal(head[key], value), key


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
    with pytest.raises(CheckpointError, match=r"a DINOv2 was expected .* or a Depth Anything"):
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


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_saved_files_have_ordinary_permissions(tmp_path):
    """safetensors' own writer lets only the owner read."""
    DepthAnything("nano").save_pretrained(tmp_path / "model")
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode == expected, path.name
