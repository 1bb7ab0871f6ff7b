"""The configuration of weights: from the caller, a config.json or a name, never a guess."""

import dataclasses
import json
import logging
import os

import pytest
import torch

from dafast.config import PRESETS
from dafast.models.checkpoint import CheckpointError
from dafast.models.configurations import config_from_json
from dafast.models.names import preset_from_name
from tests.models.checkpoints import load, random_state


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
