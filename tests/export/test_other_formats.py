"""OpenVINO, torch.export and AOTInductor: exact, with their facts, in a fresh process."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from dafast import optional
from dafast.config import SKY_FILLED
from dafast.export import export
from dafast.export.openvino_file import openvino_facts
from dafast.models.digest import digest_model
from dafast.models.sky import fill_sky
from dafast.optional import MissingPackageError
from dafast.runtime import FileFacts
from tests.export.heads import HEADS, build

RUN = """
import json, sys
import numpy as np, torch
assert not any(name.startswith("dafast") for name in sys.modules)
images = torch.from_numpy(np.load(sys.argv[2]))
if sys.argv[3] == "aoti":
    program = torch._inductor.aoti_load_package(sys.argv[1])
    facts = program.get_metadata()
else:
    extra = {"dafast.json": ""}
    program = torch.export.load(sys.argv[1], extra_files=extra).module()
    facts = json.loads(extra["dafast.json"])
with torch.no_grad():
    outputs = program(images)
np.savez(sys.argv[4], *[out.numpy() for out in outputs])
print(json.dumps({name: facts[name] for name in facts if name.startswith("dafast.")}))
"""


def in_a_fresh_process(path, kind, images, tmp_path):
    """The outputs and the facts of a program that a process without dafast runs."""
    np.save(tmp_path / "in.npy", images)
    command = [sys.executable, "-c", RUN, path, tmp_path / "in.npy", kind, tmp_path / "out.npz"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=_no_checkout()
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "out.npz")
    facts = FileFacts.from_strings(json.loads(done.stdout))
    return [outputs[name] for name in outputs.files], facts


def _no_checkout():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def exact(outputs, model, images):
    with torch.no_grad():
        maps = model.decoder_outputs(torch.from_numpy(images))
    filled, sky = fill_sky(maps[:, 0], maps[:, 1]).numpy(), maps[:, 1].numpy()
    certain = np.abs(sky - SKY_FILLED) > 1e-3  # rounding decides at the threshold
    assert certain.mean() > 0.9
    return (
        np.abs(outputs[1] - sky).max() <= 1e-4 * np.abs(sky).max()
        and np.abs(outputs[0] - filled)[certain].max() <= 1e-3 * np.abs(filled).max()
    )


@pytest.mark.exhaustive  # the compiler of AOTInductor takes a minute
@pytest.mark.parametrize("kind", ["torch", "aoti"])
def test_a_program_runs_in_a_fresh_process(kind, tmp_path, seed):
    torch.manual_seed(8)
    model, path = build("da3-metric"), tmp_path / "model.pt2"
    checks = export(model, path, kind)
    assert len({check.shape[2:] for check in checks}) == 5
    images = np.random.default_rng(seed).standard_normal((2, 3, 56, 98), dtype=np.float32)
    outputs, facts = in_a_fresh_process(path, kind, images, tmp_path)
    assert facts.weights == digest_model(model)
    assert exact(outputs, model, images)


@pytest.mark.slow
def test_a_torch_program_needs_no_dafast(tmp_path, seed):
    torch.manual_seed(8)
    model, path = build("v2-metric"), tmp_path / "model.pt2"
    checks = export(model, path, "torch")
    assert len({check.shape[2:] for check in checks}) == 5
    extra = {"dafast.json": ""}
    program = torch.export.load(path, extra_files=extra)
    facts = FileFacts.from_strings(json.loads(extra["dafast.json"]))
    assert facts.weights == digest_model(model)
    assert not any("dafast" in str(node.target) for node in program.graph.nodes)
    images = np.random.default_rng(seed).standard_normal((2, 3, 56, 98), dtype=np.float32)
    with torch.no_grad():
        (got,) = program.module()(torch.from_numpy(images))
        expected = model(torch.from_numpy(images))
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("head", "dtype"), [("bins-normed", "float32"), ("dpt", "float16")])
def test_openvino_files_are_exact(head, dtype, tmp_path):
    pytest.importorskip("openvino", reason="needs the package openvino")
    torch.manual_seed(9)
    model, path = build(head), tmp_path / "model.xml"
    checks = export(model, path, "openvino", dtype=dtype)
    assert len({check.shape[2:] for check in checks}) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    facts = openvino_facts(path)
    assert facts.dtype == dtype
    assert facts.weights == digest_model(model)
    assert facts.classes == (model.config.classes if head == "dpt" else ())


@pytest.mark.exhaustive  # the extra coreml is not in the extra test; 5 s for each head
@pytest.mark.parametrize("head", [head for head in HEADS if "bins" not in head])
def test_coreml_packages_are_converted(head, tmp_path):
    coremltools = pytest.importorskip("coremltools", reason="needs the package coremltools")
    model, path = build(head), tmp_path / "model.mlpackage"
    with pytest.raises(ValueError, match="cannot run here"):
        export(model, path, "coreml", shape=(56, 84), batch=1)
    with pytest.raises(ValueError, match="pass shape and batch"):
        export(model, path, "coreml", check=False)
    with pytest.raises(ValueError, match="has metric bins"):
        export(build("bins"), path, "coreml", shape=(56, 84), batch=1, check=False)
    assert not list(tmp_path.iterdir())
    assert export(model, path, "coreml", shape=(56, 84), batch=1, check=False) == []
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    facts = FileFacts.from_strings(package.user_defined_metadata)
    outputs = package.get_spec().description.output
    assert tuple(output.name for output in outputs) == facts.output_names
    shape = list(outputs[0].type.multiArrayType.shape)
    assert shape == ([1, 3, 56, 84] if facts.classes else [1, 56, 84])
    assert [path.name for path in tmp_path.iterdir()] == ["model.mlpackage"]


@pytest.mark.slow
def test_openvino_files_take_photos(tmp_path):
    pytest.importorskip("openvino", reason="needs the package openvino")
    checks = export(build("v2-metric"), tmp_path / "model.xml", "openvino", preprocess=True)
    assert len({check.shape for check in checks}) == 5


def test_what_coreml_refuses(tmp_path, monkeypatch):
    """Before anything is converted; with an empty module instead of coremltools."""
    monkeypatch.setitem(sys.modules, "coremltools", types.ModuleType("coremltools"))
    for head, options, message in (
        ("v1", {}, "fixed size: pass shape and batch"),
        ("v1", {"shape": (28, 42)}, "fixed size: pass shape and batch"),
        ("clips", {"shape": (28, 42), "batch": 1}, "clips are not supported"),
        ("bins", {"shape": (28, 42), "batch": 1}, "metric bins"),
    ):
        with pytest.raises(ValueError, match=message):
            export(build(head), tmp_path / "a.mlpackage", "coreml", check=False, **options)
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setattr(optional, "_BROKEN", {})
    with pytest.raises(MissingPackageError, match=r"pip install 'dafast\[coreml\]'"):
        export(build("v1"), tmp_path / "a.mlpackage", "coreml", check=False)
    assert not list(tmp_path.iterdir())
