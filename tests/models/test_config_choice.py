"""The configuration of weights: from the caller, a config.json or a name, never a guess."""

import dataclasses
import functools
import json
import math
import os

import pytest
import torch

from dafast import DepthAnything
from dafast.config import PRESETS
from dafast.devices import on_meta
from dafast.models import zoo
from dafast.models.checkpoint import CheckpointError, load_pretrained
from dafast.models.config_choice import choose_config
from dafast.models.configurations import (
    config_from_json,
    config_to_json,
    config_to_transformers,
)
from dafast.models.conversion import detect_layout
from dafast.models.names import preset_from_name, read_names
from dafast.models.network import DepthNetwork
from dafast.models.sources import Source
from dafast.models.weight_files import unwrap
from tests.models.checkpoints import TINY, assert_same, load, random_state


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


def test_configuration_from_the_name_or_the_caller(tmp_path, notices):
    torch.save(random_state("vits"), tmp_path / "depth_anything_v2_metric_hypersim_vits.pth")
    os.link(tmp_path / "depth_anything_v2_metric_hypersim_vits.pth", tmp_path / "mine.pth")
    named = load(tmp_path / "depth_anything_v2_metric_hypersim_vits.pth")
    assert named.config == PRESETS["v2-metric-hypersim-vits"]
    with pytest.raises(CheckpointError, match=r"no name that says V1 or V2.*config='v2-vits'"):
        load(tmp_path / "mine.pth")
    given = load(tmp_path / "mine.pth", config="v2-vits", position_embedding="transformers")
    assert given.config == dataclasses.replace(
        PRESETS["v2-vits"], position_embedding="transformers"
    )
    assert not notices.messages


# Names of published files, and names as people give to their own fine-tunes of a ViT-S. What they
# are read as, and whether a warning says so: "" is an error that names config=.
FILE_NAMES = [
    ("depth_anything_vits14.pth", "vits", False),
    ("depth_anything_vits14_fp16.safetensors", "vits", False),
    ("depth_anything_v2_vits.pth", "v2-vits", False),
    ("depth_anything_v2_vits (1).pth", "v2-vits", False),
    ("Depth-Anything-V2-Small-hf.safetensors", "v2-vits", False),
    ("depth_anything_v2_metric_hypersim_vits.pth", "v2-metric-hypersim-vits", False),
    ("Depth-Anything-V2-Metric-Outdoor-Small-hf.bin", "v2-metric-vkitti-vits", False),
    ("depth_anything_vits14_finetuned.pth", "vits", True),
    ("DepthAnythingV1_small_underwater.pt", "vits", True),
    ("models--LiheYoung--depth-anything-small.pth", "vits", True),
    ("depth_anything_v2_vits_finetuned.pth", "v2-vits", True),
    ("model-DepthAnythingV2-small.pth", "v2-vits", True),
    ("DepthAnythingV2_vits_endoscopy_epoch_12.pth", "v2-vits", True),
    ("depthanythingv2-s.ckpt", "v2-vits", True),
    ("depth_anything_vits_v2_best.pth", "v2-vits", True),
    ("dav2_small_best.pt", "v2-vits", True),
    ("DAv2-vits-step20000.ckpt", "v2-vits", True),
    ("v2_vits_ema.pth", "v2-vits", True),
    ("depth_anything_AC_vits.pth", "depth-anything-ac-vits", False),
    ("depth_anything_AC_vits_night.pth", "v2-vits", True),
    ("dav2_vits_kitti_relative.pth", "v2-vits", True),
    ("dav2_vits_photometric_loss.pth", "v2-vits", True),
    ("depth_anything_v2_metric_hypersim_vits_epoch5.pth", "v2-metric-hypersim-vits", True),
    ("DepthAnythingV2Metric-VKITTI-small.pth", "v2-metric-vkitti-vits", True),
    ("my_depth_anything_v2_vits_finetuned_metric.pth", "", False),
    ("depth_anything_v2_vits_hypersim.pth", "", False),
    ("depth_anything_v2_vits_vkitti2_ft.pth", "", False),
    ("depth_anything_v2_vits_nyuv2.pth", "", False),
    ("DA2_small_NYUDepthV2.ckpt", "", False),
    ("depth_anything_vits14_kitti.pth", "", False),
    ("dav2_vits_outdoor_80m.pth", "", False),
    ("dav2-vits-epoch=3-val_rmse=0.2.ckpt", "", False),
    ("dav2_metric_hypersim_vkitti_vits.pth", "", False),
    ("depth_anything_vits14_v2.pth", "", False),
    ("depth_anything_vits.pth", "", False),
    ("dinov2_vits_depth.pth", "", False),
    ("best_v2.pth", "", False),
    ("latest.pth", "", False),
]


def choose(tensors, *names, **beside):
    """The configuration of a file of these tensors, with these names from the file outward."""
    source = Source("/".join(reversed(names)), [], names=names)
    return choose_config(source, unwrap({"model": tensors, **beside}, "x"), detect_layout(tensors))


@functools.cache
def shapes(config) -> dict[str, torch.Tensor]:
    """A state_dict without memory."""
    with on_meta():
        return DepthNetwork(config).state_dict()


@pytest.mark.parametrize(("name", "preset", "warns"), FILE_NAMES)
def test_names_of_files(name, preset, warns, notices):
    tensors = shapes("vits")
    if preset:
        assert choose(tensors, name) == zoo.find(preset).config
    else:
        with pytest.raises(CheckpointError, match=r"config='v2-vits'.*--config|--config.*v2-vits"):
            choose(tensors, name)
    assert bool(notices.messages) == warns
    assert not warns or "config=" in notices.text


@pytest.mark.parametrize(
    ("names", "preset", "warns"),
    [
        (("model.safetensors", "Depth-Anything-V2-Small"), "v2-vits", False),
        (("pytorch_model.bin", "depth_anything_vits14", "LiheYoung"), "vits", False),
        (("model.safetensors", "depth_anything_v2_metric_vkitti_vits"), "v2-metric-vkitti-vits", 0),
        (("best.pth", "depth_anything_v2_finetune"), "v2-vits", True),
        (("latest.pth", "checkpoints", "Depth-Anything-V2"), "v2-vits", True),
        (("x.pth", "hypersim", "exp", "metric_depth", "Depth-Anything-V2"),
         "v2-metric-hypersim-vits", True),
        (("best.pth", "DepthAnythingV2_kitti"), "", False),
        (("depth_anything_v2_vits.pth", "kitti"), "v2-vits", False),
        (("depth_anything_v2_vits_ft.pth", "Depth-Anything-V1"), "v2-vits", True),
        (("model.safetensors", "abcd", "snapshots", "models--LiheYoung--depth-anything-small-hf"),
         "vits", True),
        (("best.pth", "run"), "", False),
    ],
)  # fmt: skip
def test_names_of_folders(names, preset, warns, notices):
    if preset:
        assert choose(shapes("vits"), *names) == PRESETS[preset]
    else:
        with pytest.raises(CheckpointError, match="config="):
            choose(shapes("vits"), *names)
    assert bool(notices.messages) == bool(warns)


def test_folders_count_in_a_path(tmp_path, notices):
    folder = tmp_path / "DepthAnythingV2"
    folder.mkdir()
    torch.save(random_state("vits"), folder / "best.pth")
    assert load(folder / "best.pth").config == PRESETS["v2-vits"]
    assert "blocks (2, 5, 8, 11)" in notices.text


@pytest.mark.slow
def test_unnamed_weights_are_what_the_caller_expects(tmp_path, notices):
    torch.save(random_state("vits"), tmp_path / "best.pth")
    os.link(tmp_path / "best.pth", tmp_path / "depth_anything_v2_vits.pth")
    os.link(tmp_path / "best.pth", tmp_path / "dav2_nyu.pth")
    expected = PRESETS["v2-metric-vkitti-vits"]

    def start(name, unnamed):
        path = tmp_path / name
        return load_pretrained(DepthNetwork, path, unnamed=unnamed, device="cpu").config

    assert start("best.pth", expected) == expected
    assert start("depth_anything_v2_vits.pth", expected) == PRESETS["v2-vits"]
    assert start("dav2_nyu.pth", expected) == expected
    with pytest.raises(CheckpointError, match="probably a metric model"):
        start("dav2_nyu.pth", PRESETS["v2-vits"])
    with pytest.raises(CheckpointError, match="do not fit the configuration 'vitb'"):
        start("best.pth", PRESETS["vitb"])
    assert not notices.messages


@pytest.mark.parametrize("name", ["depth_anything_v2_vits.pth", "mine_dav2_small.pth", "best.pth"])
@pytest.mark.parametrize(
    "beside",
    [
        {"previous_best": {"d1": 0.9, "rmse": 1.2, "silog": 9.0}, "epoch": 3},
        {"best_abs_rel": 0.07},
        {"args": {"max_depth": 20.0}},
    ],
)
def test_metric_scores_next_to_the_weights(name, beside):
    with pytest.raises(CheckpointError, match=r"saved with the weights.*v2-metric-hypersim-vits"):
        choose(shapes("vits"), name, **beside)
    metric = choose(shapes("vits"), "depth_anything_v2_metric_hypersim_vits.pth", **beside)
    assert metric == PRESETS["v2-metric-hypersim-vits"]


def test_the_size_of_nano_is_its_own(notices):
    assert choose(shapes("nano"), "best.pth") == PRESETS["nano"]
    assert "config=" in notices.text
    with pytest.raises(CheckpointError, match="probably a metric model"):
        choose(shapes("nano"), "nano_kitti_metric.pth")


def test_sizes_that_were_never_published():
    tensors = shapes(TINY)
    for name in ("dav2.pth", "best.pth"):
        with pytest.raises(CheckpointError, match="ModelConfig with out_indices"):
            choose(tensors, name)
    wider = dataclasses.replace(PRESETS["v2-vits"], name="custom", features=96, hub_id="",
                                hub_file="", license="")  # fmt: skip
    assert choose(shapes(wider), "dav2_wide.pth") == wider


def config_of_80_metres(form: str) -> dict:
    config = PRESETS["v2-metric-vkitti-vits"]
    if form == "dafast":
        return config_to_json(config, "1")
    if form == "transformers":
        return config_to_transformers(config, "float32")
    return {"encoder": "vits", "features": 64, "out_channels": [48, 96, 192, 384], "max_depth": 80}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dafast", "transformers", "official"])
def test_config_json_next_to_a_file_of_any_name(form, tmp_path, notices):
    torch.save(random_state("vits"), tmp_path / "best.pth")
    (tmp_path / "config.json").write_text(json.dumps(config_of_80_metres(form)))
    for path, options in (
        (tmp_path / "best.pth", {}),
        (tmp_path, {}),
        (tmp_path, {"filename": "best.pth"}),
    ):
        assert load(path, **options).config == PRESETS["v2-metric-vkitti-vits"]
    assert not notices.messages
    (tmp_path / "weights").mkdir()
    os.link(tmp_path / "best.pth", tmp_path / "weights" / "best.pth")
    inner = load(tmp_path, filename="weights/best.pth")
    assert inner.config == PRESETS["v2-metric-vkitti-vits"]


@pytest.mark.slow
def test_config_json_of_something_else(tmp_path, notices):
    torch.save(random_state("vits"), tmp_path / "depth_anything_v2_vits.pth")
    path = tmp_path / "config.json"
    for text in (
        json.dumps({"lr": 1e-4, "model": {"preset": "vits"}}),
        "{",
        json.dumps(config_to_json(PRESETS["nano"], "1")),
    ):
        path.write_text(text)
        notices.clear()
        loaded = load(tmp_path / "depth_anything_v2_vits.pth")
        assert loaded.config == PRESETS["v2-vits"]
        assert f"{path}: " in notices.text
        assert "not used" in notices.text
    path.write_text(json.dumps({"encoder": "vitg"}))
    with pytest.raises(CheckpointError, match=r"config\.json: encoder 'vitg'"):
        load(tmp_path / "depth_anything_v2_vits.pth")


def test_a_relative_config_json_next_to_a_metric_name(tmp_path, notices):
    torch.save(random_state("vits"), tmp_path / "best_metric.pth")
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(PRESETS["v2-vits"], "1")))
    assert load(tmp_path / "best_metric.pth").config == PRESETS["v2-vits"]
    assert "its name says 'metric', but its configuration is that of a relative" in notices.text


def training_state(model, ema=None) -> dict:
    """A checkpoint as `dafast.training.state` writes it."""
    return {
        "model": model.state_dict(),
        "ema": ema.state_dict() if ema else None,
        "optimizer": {"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": [{"lr": 0.1}]},
        "random": {"torch": torch.get_rng_state(), "python": (3, (1, 2), None)},
        "step": 7,
        "position": 28,
        "best_score": 0.5,
        "config": json.dumps({"model": {"preset": "vits"}}),
    }


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoint_of_a_training_run(model, averaged, tmp_path):
    ema = DepthAnything(TINY) if averaged else None
    path = tmp_path / "checkpoints" / "step-00000007.pt"
    path.parent.mkdir()
    torch.save(training_state(model, ema), path)
    with pytest.raises(CheckpointError, match="load the run's export/ folder"):
        load(path)
    assert_same(load(path, config=TINY), ema or model)
    (ema or model).save_pretrained(tmp_path / "export")
    loaded = load(path)
    assert loaded.config == TINY
    assert_same(loaded, ema or model)
    aside = tmp_path / "set-aside-1" / "checkpoints" / path.name
    aside.parent.mkdir(parents=True)
    os.link(path, aside)
    assert load(aside).config == TINY
    with pytest.raises(CheckpointError, match=r"The model of this training run is in .*export"):
        load(tmp_path)


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
    loaded = back.state_dict()
    for key, value in original.items():
        assert torch.equal(loaded[key], value.float()), key
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_clstoken": True}))
    with pytest.raises(CheckpointError, match="use_clstoken"):
        load(tmp_path)


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
    del base["out_indices"]  # only the names
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


@pytest.mark.parametrize("max_depth", ["80", True, math.nan, math.inf, -1])
def test_a_largest_depth_that_is_none(max_depth):
    with pytest.raises(ValueError, match=r"max_depth=.* must be a positive number of metres"):
        dataclasses.replace(PRESETS["vits"], max_depth=max_depth)


@pytest.mark.parametrize("words", ["80m", "max_depth_20", "maxdepth20", "si-log"])
def test_names_with_a_depth_say_metric(words):
    assert read_names((f"depth_anything_v2_vits_{words}.pth",)).metric
