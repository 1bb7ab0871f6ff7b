"""The published models: registry, names, layouts, and what `dafast models` says."""

import dataclasses
import hashlib
import json
import re

import pytest
import torch

from dafast import DepthAnything
from dafast.cli import main
from dafast.config import PRESETS
from dafast.devices import on_meta
from dafast.models import zoo
from dafast.models.checkpoint import CheckpointError, load_encoder
from dafast.models.configurations import config_from_json, config_to_transformers
from dafast.models.conversion import LAYOUTS, from_official
from dafast.models.describe import describe
from dafast.models.hub import HubOptions
from dafast.models.sources import locate
from tests.models.checkpoints import TINY, assert_same, load
from tests.tiny import tiny

ENTRIES = list(zoo.entries().values())


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Replaces downloads: what was asked for, each file empty."""
    asked = []

    def fetch(repo_id, filename, options, *, config=""):
        asked.append((repo_id, filename))
        assert config in PRESETS
        path = tmp_path / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    monkeypatch.setattr("dafast.models.sources.fetch_file", fetch)
    return asked


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_entries_are_whole(entry, downloads):
    config = entry.config
    assert config.license and entry.unit
    assert bool(config.hub_id) == bool(config.hub_file) == (entry.id != "nano")
    for name in (entry.id, entry.id.upper(), *entry.aliases):
        assert zoo.find(name) == entry
        source = locate(name, None, HubOptions())
        assert source.preset == config
        if config.hub_id:
            assert downloads[-1] == (config.hub_id, config.hub_file)
    with on_meta():
        DepthAnything(config)


def test_names_are_unique_and_presets_complete():
    names = [name for entry in ENTRIES for name in (entry.id, *entry.aliases)]
    assert len(names) == len(set(names))
    assert {name for name in PRESETS if PRESETS[name].hub_id} <= set(zoo.entries())
    assert zoo.find("depth-anything-v2-small").id == "v2-vits"
    assert zoo.find("LiheYoung/depth_anything_vits14").id == "vits"
    assert zoo.find("depth-anything/Depth-Anything-V2-Large").id == "v2-vitl"
    assert zoo.find("depth-anything-v3") is None


def test_names_of_files_stay_files(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("v2-small")
    assert_same(load("v2-small"), model)


@pytest.mark.parametrize("layout", ["distill", "distill_plain"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod."])
def test_mixed_layout_of_distill_any_depth_large(layout, prefix, model, tmp_path):
    from safetensors.torch import save_file

    state = from_official(model.state_dict(), LAYOUTS[layout])
    state = {prefix + key: value.contiguous() for key, value in state.items()}
    first = f"{prefix}backbone.blocks.{'0.' if layout == 'distill' else ''}4.norm1.weight"
    assert first in state and f"{prefix}depth_head.projects.0.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    assert_same(load(tmp_path / "model.safetensors", config=TINY), model)
    fresh = DepthAnything(TINY)
    load_encoder(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.pretrained.pos_embed, model.pretrained.pos_embed)
    del state[first]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(first.removeprefix(prefix))):
        load(tmp_path / "model.safetensors", config=TINY)


def test_an_encoder_with_this_prefix_is_one_still(model, tmp_path):
    state = {f"backbone.{key}": value for key, value in model.pretrained.state_dict().items()}
    torch.save(state, tmp_path / "dinov2.pth")
    fresh = DepthAnything(TINY)
    load_encoder(fresh, tmp_path / "dinov2.pth")
    assert torch.equal(fresh.pretrained.pos_embed, model.pretrained.pos_embed)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod."])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth"])
def test_uploads_of_others(prefix, suffix, model, tmp_path):
    """Fine-tunes of V2 in the official layout, with what trainers add."""
    from safetensors.torch import save_file

    state = {prefix + key: value for key, value in model.state_dict().items()}
    path = tmp_path / f"depth_anything_AC_tiny{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == ".ckpt" else state, path)
    assert_same(load(path, config=TINY), model)


def file_names(entry: zoo.ZooEntry) -> list[str]:
    """Paths under which a user may have a published file, with suffixes that torch.save takes."""
    repository = entry.config.hub_id.split("/")[-1]
    file = entry.config.hub_file.replace("model.safetensors", "pytorch_model.bin")
    if entry.config.sky_head:
        other = f"{repository.lower()}_fp16.pth"
        return [f"{repository}/{file}", other, f"{repository}/snapshots/model.pth"]
    return [f"{repository}/{file}"]


@pytest.mark.parametrize(
    ("entry", "path"),
    [(entry, path) for entry in ENTRIES if entry.id != "nano" for path in file_names(entry)],
    ids=lambda value: getattr(value, "id", None),
)
def test_published_files_are_known_by_name(entry, path, tmp_path, notices):
    """Each in its published layout, with shapes only: a tensor of zeros that are stored once."""
    with on_meta():
        shapes = DepthAnything(entry.config).state_dict()
    state = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
    layout = "official"
    if entry.config.sky_head:
        layout = "da3"
    elif entry.config.temporal_frames:
        layout = "vda"
    elif entry.config.bin_centers:
        layout = "zoedepth"
    elif entry.id == "distill-any-depth-vitl":
        layout = "distill"
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(from_official(state, LAYOUTS[layout]), file)
    found = describe(file)
    assert found.config == entry.config
    assert (found.problem, found.extra, found.missing) == ("", [], [])
    assert (found.layout, found.license) == (layout, entry.config.license)
    assert found.license_note == entry.license_note
    assert found.encoder == entry.id.split("-")[-1]
    assert not notices.messages


def test_digests_are_digests():
    known = [entry for entry in ENTRIES if entry.sha256]
    assert len({entry.sha256 for entry in known}) == len(known) >= 11
    assert all(re.fullmatch("[0-9a-f]{64}", entry.sha256) for entry in known)
    assert all(entry.size > 99e6 for entry in known if entry.size is not None)


@pytest.mark.parametrize("sized", [True, False])
def test_a_published_file_is_known_under_any_name(sized, model, tmp_path, monkeypatch, notices):
    """Also under one that says something else; sizes spare reading all others."""
    file = tmp_path / "depth_anything_vits14_metric.pth"
    torch.save(model.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    mine = zoo.ZooEntry("mine", TINY, size=file.stat().st_size if sized else None, sha256=digest)
    other = zoo.ZooEntry("other", tiny(max_depth=3.0), size=file.stat().st_size, sha256="0" * 64)
    monkeypatch.setattr(zoo, "entries", lambda: {"other": other, "mine": mine})
    assert load(file).config == TINY and not notices.messages
    with file.open("ab") as longer:
        longer.write(b"0")
    monkeypatch.setattr(hashlib, "file_digest", None)  # not called
    with pytest.raises(CheckpointError, match="config="):
        load(file)


def test_depth_estimation_is_an_alias():
    data = config_to_transformers(tiny(max_depth=20.0), "float32")
    data["depth_estimation"] = data.pop("depth_estimation_type")
    assert config_from_json(data).max_depth == 20.0
    data["depth_estimation_type"] = "relative"
    data["max_depth"] = 1
    assert config_from_json(data).max_depth is None


def run_json(capsys, *arguments) -> tuple[int, object]:
    code = main(["models", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_command_lists_models(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "dafast.models.sources.cached_file",
        lambda entry: tmp_path / "x.pth" if entry.id == "v2-vits" else None,
    )
    code, listed = run_json(capsys)
    assert code == 0
    by_id = {entry["id"]: entry for entry in listed}
    assert list(by_id) == list(zoo.entries())
    assert by_id["v2-vits"]["cached"] == str(tmp_path / "x.pth")
    assert by_id["vits"]["cached"] is None
    assert by_id["da3metric-vitl"]["unit"] == "metres, times focal length in pixels / 300"
    assert "MIT" in by_id["distill-any-depth-vitl"]["license_note"]
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for entry in ENTRIES:
        assert re.search(rf"^{entry.id} .*{re.escape(entry.config.license)}", text, re.MULTILINE)
    assert re.search(r"^v2-vits .* yes ", text, re.MULTILINE)


def test_command_describes_files(capsys, model, tmp_path):
    model.half().save_pretrained(tmp_path / "mine")
    code, facts = run_json(capsys, "info", tmp_path / "mine")
    assert code == 0
    assert facts["layout"] == "official" and facts["dtypes"] == {"float16": len(model.state_dict())}
    assert facts["parameters"] == sum(t.numel() for t in model.state_dict().values())
    assert facts["taps"] == list(TINY.out_indices) and facts["output"] == "disparity"

    state = model.state_dict()
    del state["pretrained.norm.bias"]
    torch.save(state | {"depth_head.other": torch.ones(3)}, tmp_path / "mine/model.pth")
    (tmp_path / "mine/model.safetensors").unlink()
    code, facts = run_json(capsys, "info", tmp_path / "mine")
    assert code == 1
    assert facts["extra"] == ["depth_head.other"]
    assert facts["missing"] == ["pretrained.norm.bias"]

    integers = {key: value.to(torch.int8) for key, value in model.state_dict().items()}
    torch.save(integers, tmp_path / "mine/model.pth")
    code, facts = run_json(capsys, "info", tmp_path / "mine")
    assert code == 1 and "not floating point (int8" in facts["problem"]
    torch.save(state, tmp_path / "mine/model.pth")

    (tmp_path / "mine/config.json").unlink()
    code, facts = run_json(capsys, "info", tmp_path / "mine/model.pth")
    assert code == 1 and "config=" in facts["problem"] and facts["layout"] == "official"
    assert main(["models", "info", str(tmp_path / "mine/model.pth")]) == 1
    assert "problem: " in capsys.readouterr().out
    assert main(["models", "info", str(tmp_path / "nothing.pth")]) == 1
    assert "nothing.pth" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["https://huggingface.co/", "hf://"])
def test_addresses_of_the_hub_are_no_ids(start):
    with pytest.raises(CheckpointError, match=r"id of the repository is 'owner/name'$"):
        locate(f"{start}owner/name/tree/main", None, HubOptions())


def test_command_describes_entries_that_are_not_here(capsys, monkeypatch):
    monkeypatch.setattr("dafast.models.sources.cached_file", lambda entry: None)
    code, facts = run_json(capsys, "info", "Distill-Any-Depth-Large")
    assert code == 0 and facts["id"] == "distill-any-depth-vitl" and facts["cached"] is None


def test_configuration_checks_its_output():
    for changes, message in (
        ({"output": "tanh"}, "output='tanh'; use one of"),
        ({"output": "sigmoid"}, "needs a max_depth"),
        ({"focal_length": 300.0}, "kind='metric'"),
        ({"max_depth": 10.0, "kind": "depth"}, "max_depth needs"),
        ({"max_depth": 10.0, "output": "exp"}, "max_depth needs"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"fit": "stretch"}, "fit='stretch'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **changes)
