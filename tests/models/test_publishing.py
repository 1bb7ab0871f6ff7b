"""Uploads and downloads, against a local server that plays the hub; and model cards."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants, file_download
from PIL import Image

from dafast import DepthAnything, SegmentationModel
from dafast._warnings import DataWarning, WeightsWarning
from dafast.cli import main
from dafast.config import PRESETS
from dafast.devices import on_meta
from dafast.models import hub as dafast_hub
from dafast.models.checkpoint import CheckpointError, load_encoder
from dafast.models.describe import describe
from dafast.models.hub import HubError
from dafast.models.model_card import model_card
from dafast.models.segmentation import HEADS, is_segmentation
from dafast.training.config import ModelSection, TrainConfig
from dafast.training.config_files import to_json
from tests.models.fake_hub import GATED, READ_ONLY, TOKEN, serve, url
from tests.models.test_segmentation import build
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]
SCORES = {"step": 40, "loss": 0.25, "abs_rel": 0.125, "delta_1": 0.875}
SCORES |= {"constant_abs_rel": 0.5, "plane_abs_rel": 0.4, "constant_delta_1": float("nan")}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The running hub, for huggingface_hub in this process."""
    (tmp_path / "hub").mkdir()
    with serve(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", url(server))
        template = f"{url(server)}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # where older clients keep a copy
            name = "HUGGINGFACE_CO_URL_TEMPLATE"
            monkeypatch.setattr(module, name, template, raising=module is constants)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def model() -> DepthAnything:
    return DepthAnything(tiny()).eval()


@pytest.fixture
def run(model, tmp_path) -> Path:
    """The folder best/ of a training run, with the scores of its model."""
    run = tmp_path / "private-folder/run"
    model.save_pretrained(run / "best")
    (run / "best/evaluation.json").write_text(json.dumps(SCORES))
    config = TrainConfig(model=ModelSection(preset="vits", init="v2-vits"), steps=40)
    data = json.loads(to_json(config))
    data["data"] |= {"path": "/home/somebody/garden.csv", "eval_path": "/home/somebody/held out"}
    (run / "config.json").write_text(json.dumps(data))
    return run / "best"


def there(hub, name: str) -> set[str]:
    return {p.name for p in (hub.RequestHandlerClass.folder / name).iterdir()} - {".commits"}


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], state[name]) for name in state)


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_upload_then_download(hub, model, layout):
    address = model.push_to_hub("me/garden", token=TOKEN, layout=layout, private=True)

    assert address.startswith(f"{url(hub)}/me/garden/commit/")
    files = {".gitattributes", "README.md", "config.json", "model.safetensors"}
    files |= {"preprocessor_config.json"} if layout == "transformers" else set()
    assert there(hub, "me/garden") == files
    assert (hub.RequestHandlerClass.folder / "me/garden/.gitattributes").read_text() == "private"
    commits = [r for r in hub.RequestHandlerClass.requests if "/commit/" in r]
    assert len(commits) == 1
    loaded = DepthAnything.from_pretrained("me/garden", device="cpu", dtype="float32")
    assert_same(loaded, state_of(model))
    assert loaded.config == model.config
    assert loaded.loaded_from == "me/garden"


def test_segmentation(hub):
    model = build("linear").eval()
    model.push_to_hub("walls", token=TOKEN)

    card = ModelCard((hub.RequestHandlerClass.folder / "me/walls/README.md").read_text())
    assert card.data.pipeline_tag == "image-segmentation"
    loaded = SegmentationModel.from_pretrained("me/walls", device="cpu", dtype="float32")
    assert_same(loaded, state_of(model))
    with pytest.raises(CheckpointError, match=r"me/none.*no such repository.*no local folder"):
        SegmentationModel.from_pretrained("me/none")
    with pytest.raises(CheckpointError, match="local_files_only"):
        SegmentationModel.from_pretrained("me/none", local_files_only=True)


def test_which_kind_of_model_a_repository_has(hub, model, capsys, tmp_path):
    """Commands find out; the wrong class says which class reads it."""
    walls = build("linear").eval()
    walls.push_to_hub("me/walls", token=TOKEN)
    model.push_to_hub("me/garden", token=TOKEN)
    assert is_segmentation("me/walls")
    assert not is_segmentation("me/garden")
    assert not is_segmentation("me/none")
    hub.RequestHandlerClass.requests.clear()
    assert is_segmentation("me/walls")
    assert hub.RequestHandlerClass.requests == []  # its config.json is in the cache
    assert not is_segmentation(PRESETS["v2-vits"].hub_id)
    assert hub.RequestHandlerClass.requests == []  # published models are known
    with pytest.raises(CheckpointError, match="not a saved segmentation model"):
        SegmentationModel.from_pretrained("me/garden")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (56, 42), "gray").save(photo)
    out = ["--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "out")]
    assert main(["run", str(photo), "--model", "me/walls", *out]) == 0, capsys.readouterr().err
    assert list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("head", HEADS)
def test_a_segmentation_model_is_named(head, tmp_path):
    build(head).save_pretrained(tmp_path)
    for read in (DepthAnything.from_pretrained, partial(load_encoder, DepthAnything(tiny()))):
        with pytest.raises(CheckpointError, match=r"which SegmentationModel.from_pretrained reads"):
            read(tmp_path)
    assert "SegmentationModel.from_pretrained" in describe(tmp_path).problem


@pytest.mark.parametrize("read", [DepthAnything.from_pretrained, SegmentationModel.from_pretrained])
def test_damaged_shards(hub, model, read):
    model.push_to_hub("me/garden", token=TOKEN, max_shard_size="50KB")
    folder = hub.RequestHandlerClass.folder / "me/garden"
    shard = sorted(folder.glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"has no file '{shard.name}', which .*index.json"):
        read("me/garden")
    other = folder.with_name("other")
    other.mkdir()
    (other / "model.safetensors.index.json").write_text('{"weights": {}}')
    with pytest.raises(CheckpointError, match=r"me/other: .*not an index of shards"):
        read("me/other")


def test_a_config_that_cannot_be_fetched_is_a_warning(hub, model, monkeypatch):
    """Without it the names of files decide, which may be wrong."""
    model.push_to_hub("me/garden", token=TOKEN)
    download = dafast_hub._download

    def fails(repo_id, filename, options):
        if filename == "config.json":
            raise HubError("the download failed")
        return download(repo_id, filename, options)

    monkeypatch.setattr(dafast_hub, "_download", fails)
    options = dafast_hub.HubOptions()
    with pytest.warns(WeightsWarning, match=r"me/garden: config\.json.*download failed"):
        assert dafast_hub.fetch_config("me/garden", "model.safetensors", options) is None


@pytest.mark.slow
def test_lfs(tmp_path, model):
    """The hub stores weights by LFS: another request, another line of the commit."""
    (tmp_path / "hub").mkdir()
    code = (
        "import sys, torch; from dafast import DepthAnything; from tests.tiny import tiny\n"
        "torch.manual_seed(0); model = DepthAnything(tiny())\n"
        "print(model.push_to_hub('me/lfs'))\n"
        "loaded = DepthAnything.from_pretrained('me/lfs', device='cpu', dtype='float32')\n"
        "pairs = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)\n"
        "assert all(torch.equal(a, b) for a, b in pairs)"
    )
    with serve(tmp_path / "hub", lfs=True) as server:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= {"HF_ENDPOINT": url(server), "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        environment["HF_HUB_DISABLE_XET"] = "1"  # the server plays the older protocol
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{url(server)}/me/lfs/commit/")
    assert any(r.startswith("PUT /lfs/") for r in server.RequestHandlerClass.requests)


@pytest.mark.slow
def test_a_second_upload(hub, model):
    """It replaces the weights, also if they are in other files now, and keeps the card."""
    folder = hub.RequestHandlerClass.folder / "me/garden"
    model.push_to_hub("me/garden", token=TOKEN, card="# Mine\n")
    with torch.no_grad():
        model.pretrained.cls_token.add_(1)
    model.push_to_hub("me/garden", token=TOKEN, max_shard_size="50KB")

    assert "model.safetensors" not in there(hub, "me/garden")
    loaded = DepthAnything.from_pretrained("me/garden", device="cpu", dtype="float32")
    assert_same(loaded, state_of(model))
    model.push_to_hub("me/garden", token=TOKEN)
    assert not [name for name in there(hub, "me/garden") if "-of-" in name or "index" in name]
    assert (folder / "README.md").read_text() == "# Mine\n"
    model.push_to_hub("me/garden", token=TOKEN, card=model_card(model, "me/garden"))
    assert "library_name: dafast" in (folder / "README.md").read_text()


def test_branch_and_pull_request(hub, model):
    model.push_to_hub("me/garden", token=TOKEN)
    main = state_of(model)
    with torch.no_grad():
        model.pretrained.cls_token.add_(1)
    model.push_to_hub("me/garden", token=TOKEN, branch="next")
    address = model.push_to_hub("me/garden", token=TOKEN, create_pr=True)

    assert address == f"{url(hub)}/me/garden/discussions/1"
    options = {"device": "cpu", "dtype": "float32"}
    assert_same(DepthAnything.from_pretrained("me/garden", **options), main)
    loaded = DepthAnything.from_pretrained("me/garden", revision="next", **options)
    assert_same(loaded, state_of(model))
    with pytest.raises(ValueError, match="leave out branch"):
        model.push_to_hub("me/garden", token=TOKEN, branch="next", create_pr=True)


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("me/garden", None, "hf auth login"),
        ("me/garden", "hf_wrong", "hf auth login"),
        ("me/garden", READ_ONLY, "may not write"),
        ("me/gar den", TOKEN, "me/gar den"),
        ("a/b/c", TOKEN, "a/b/c"),
    ],
)
def test_what_the_hub_refuses(hub, model, repo_id, token, message):
    with pytest.raises(HubError, match=message) as raised:
        model.push_to_hub(repo_id, token=token)
    assert "nothing was uploaded" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not any("/commit/" in request for request in hub.RequestHandlerClass.requests)


def test_a_model_that_cannot_be_saved_makes_no_repository(hub, model):
    with pytest.raises(ValueError, match="layout='zoedepth'"):
        model.push_to_hub("me/garden", token=TOKEN, layout="zoedepth")
    assert hub.RequestHandlerClass.requests == []


def test_no_hub(model, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="me/garden: nothing was uploaded"):
        model.push_to_hub("me/garden", token=TOKEN)


@pytest.mark.slow
def test_options_of_the_mixin(hub, model, tmp_path):
    """from_pretrained takes what `PyTorchModelHubMixin.from_pretrained` takes."""
    seen = hub.RequestHandlerClass
    model.push_to_hub(GATED, token=TOKEN)
    options = {"device": "cpu", "dtype": "float32", "cache_dir": tmp_path / "own cache"}
    with pytest.raises(CheckpointError, match="gated"):
        DepthAnything.from_pretrained(GATED, **options)
    DepthAnything.from_pretrained(GATED, token=TOKEN, **options)
    assert seen.headers_seen[-1] == f"Bearer {TOKEN}"
    assert list((tmp_path / "own cache").rglob("*.safetensors"))
    assert not (tmp_path / "cache").exists()

    seen.requests.clear()
    loaded = DepthAnything.from_pretrained(GATED, local_files_only=True, **options)
    assert seen.requests == []
    assert_same(loaded, state_of(model))
    DepthAnything.from_pretrained(GATED, token=TOKEN, **options)
    assert not any(r.startswith("GET") for r in seen.requests)  # the cache is current
    DepthAnything.from_pretrained(GATED, token=TOKEN, force_download=True, **options)
    assert any(r.startswith("GET") and "model.safetensors" in r for r in seen.requests)
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        DepthAnything.from_pretrained(GATED, token=TOKEN, revision="v9", **options)


# ----------------------------------------------------------------------------------- the card


def test_the_card_of_a_run(run):
    model = DepthAnything.from_pretrained(run, device="cpu", dtype="float32")
    text = model_card(model, "me/garden")
    card = ModelCard(text)

    assert card.data.library_name == "dafast"
    assert card.data.pipeline_tag == "depth-estimation"
    assert card.data.base_model == PRESETS["v2-vits"].hub_id
    assert card.data.license == "apache-2.0"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": 0.25, "abs_rel": 0.125, "delta_1": 0.875}
    assert {result.dataset_name for result in card.data.eval_results} == {"held out"}
    assert "| AbsRel (lower is better) | 0.125 | 0.5 | 0.4 |" in text
    assert "| `steps` | 40 |" in text
    assert "| `data.path` | garden.csv |" in text
    assert "somebody" not in text
    assert "private-folder" not in text
    assert 'from_pretrained("me/garden")' in text
    assert "nan" not in text
    # A run that is named has precedence, and so have arguments.
    fresh = DepthAnything(tiny())
    assert "0.125" in model_card(fresh, run=run)
    data = ModelCard(model_card(fresh, run=run, base_model="a/b", license="MIT")).data
    assert (data.base_model, data.license) == ("a/b", "mit")
    assert ModelCard(model_card(fresh, run=run, base_model="")).data.base_model is None


@pytest.mark.parametrize(
    ("init", "encoder_init", "base", "license"),
    [
        ("", "random", None, None),
        ("", "dinov2", "facebook/dinov2-small", "apache-2.0"),
        ("v2-vitl", "random", PRESETS["v2-vitl"].hub_id, "cc-by-nc-4.0"),
        ("somebody/garden", "random", "somebody/garden", None),
        ("runs/x/best", "random", None, None),
    ],
)
def test_the_base_model_of_a_run(tmp_path, init, encoder_init, base, license):
    section = ModelSection(preset="vits", init=init, encoder_init=encoder_init)
    (tmp_path / "config.json").write_text(to_json(TrainConfig(model=section)))
    with on_meta():
        model = DepthAnything("vits")
    data = ModelCard(model_card(model, run=tmp_path)).data
    assert (data.base_model, data.license) == (base, license)


@pytest.mark.slow
def test_cards_without_a_run(model, tmp_path):
    data = ModelCard(model_card(model)).data
    assert data.base_model is data.license is data.eval_results is None  # nothing is known
    nano = DepthAnything.from_pretrained("nano", device="cpu", dtype="float32")
    assert ModelCard(model_card(nano)).data.license == "apache-2.0"
    # A published model that was saved to a folder is still that model.
    nano.loaded_from = str(tmp_path)
    assert ModelCard(model_card(nano)).data.license == "apache-2.0"
    with on_meta():
        zoe = DepthAnything("metric-indoor-vitl")  # its repository is a space, no base model
    zoe.loaded_from = str(tmp_path)
    assert ModelCard(model_card(zoe)).data.license == "apache-2.0"
    # One that goes back to where it is from is not its own base model.
    nano.loaded_from = "me/nano"
    data = ModelCard(model_card(nano, "me/nano")).data
    assert (data.base_model, data.license) == (None, "apache-2.0")
    assert ModelCard(model_card(nano, "me/other")).data.base_model == "me/nano"
    with on_meta():
        model = DepthAnything("v2-metric-hypersim-vitl")
    model.loaded_from = str(tmp_path)
    text = model_card(model)
    assert ModelCard(text).data.license == "cc-by-nc-4.0"
    assert ModelCard(text).data.base_model == PRESETS["v2-metric-hypersim-vitl"].hub_id
    assert "infer_metric" in text
    assert "issue 245" in text  # what the sources say about its license
    assert "20 m" in text


def test_a_card_with_a_damaged_evaluation(run):
    (run / "evaluation.json").write_text("{")
    model = DepthAnything.from_pretrained(run, device="cpu", dtype="float32")
    with pytest.warns(DataWarning, match="evaluation.json"):
        assert "## Evaluation" not in model_card(model)
    odd = {"a|b\nc": 1.5, "flag": True, "step": "late", "list": [1], "abs_rel": 1e-7}
    (run / "evaluation.json").write_text(json.dumps(odd))
    text = model_card(model)
    assert "| a\\|b c | 1.5 |" in text
    assert "flag" not in text
    assert "late" not in text


def test_a_folder_outside_of_runs(hub, model, tmp_path):
    for run in (tmp_path / "nowhere", tmp_path, ""):
        with pytest.raises(ValueError, match="name a folder"):
            model_card(model, run=run)
        with pytest.raises(ValueError, match="name a folder"):
            model.push_to_hub("me/garden", token=TOKEN, run=run)
    assert hub.RequestHandlerClass.requests == []


def test_the_card_of_transformers_layout(model):
    card = ModelCard(model_card(model, "me/garden", layout="transformers"))
    assert card.data.library_name == "transformers"  # else its pipeline refuses the repository
    assert 'pipeline("depth-estimation", model="me/garden")' in card.text


def test_hub_ids():
    assert dafast_hub.is_hub_id("somebody/garden")
    for name in ("garden", "a/b/c", "./garden", "../x/y", "", Path("somebody/garden")):
        assert not dafast_hub.is_hub_id(name)


# ---------------------------------------------------------------------------------- torch.hub


def test_torch_hub_checks_the_dependencies():
    """hubconf.py names the modules of the packages that dafast requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[<>=\[ ;]", each)[0] for each in project["dependencies"]}
    modules = packages - {"pillow"} | {"PIL"}
    namespace = runpy.run_path(str(ROOT / "hubconf.py"))
    assert sorted(modules) == sorted(namespace["dependencies"])


def test_torch_hub(tmp_path, model):
    model.save_pretrained(tmp_path)
    options = {"source": "local", "device": "cpu", "dtype": "float32"}
    loaded = torch.hub.load(ROOT, "depth_anything", str(tmp_path), **options)
    assert_same(loaded, state_of(model))
    fresh = torch.hub.load(ROOT, "depth_anything", "nano", pretrained=False, source="local")
    assert fresh.config.name == "nano"
    assert not fresh.training
    with pytest.raises(TypeError, match="no device"):
        torch.hub.load(ROOT, "depth_anything", "nano", pretrained=False, **options)
    walls = build("linear").eval()
    walls.save_pretrained(tmp_path / "walls")
    loaded = torch.hub.load(ROOT, "segmentation", str(tmp_path / "walls"), **options)
    assert_same(loaded, state_of(walls))
