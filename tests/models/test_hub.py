"""Downloads, against a local server that plays the hub: nothing here touches the network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dafast import DepthAnything
from dafast.models.conversion import LAYOUTS, from_official
from tests.models.fake_hub import COMMIT, GATED, serve, url

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nano() -> DepthAnything:
    return DepthAnything("nano").eval()


@pytest.fixture(scope="module")
def repositories(nano, tmp_path_factory) -> Path:
    """Repositories of every form, under the names of the real ones where dafast knows those."""
    root = tmp_path_factory.mktemp("hub")
    nano.save_pretrained(root / "someone/own", dtype="float16")
    nano.save_pretrained(root / "someone/nano-hf", layout="transformers", dtype="float16")
    nano.save_pretrained(root / "someone/sharded", dtype="float16", max_shard_size="2MB")
    other = root / "someone/odd-name"
    other.mkdir()
    torch.save(from_official(nano.state_dict(), LAYOUTS["official"]), other / "best.pth")
    described = root / "someone/described/weights"
    described.mkdir(parents=True)
    os.link(other / "best.pth", described / "best.pth")
    own = (root / "someone/own/config.json").read_text()
    (described.parent / "config.json").write_text(own.replace('"nano"', '"described"'))
    (root / "someone/empty").mkdir()
    (root / "someone/empty/README.md").write_text("nothing yet")
    with torch.device("meta"):
        vits = DepthAnything("vits")
    state = {key: torch.randn(value.shape).half() for key, value in vits.state_dict().items()}
    v1 = root / "LiheYoung/depth_anything_vits14"
    v1.mkdir(parents=True)
    torch.save(state, v1 / "pytorch_model.bin")
    v2 = root / "depth-anything/Depth-Anything-V2-Small"
    v2.mkdir(parents=True)
    os.link(v1 / "pytorch_model.bin", v2 / "depth_anything_v2_vits.pth")
    return root


@pytest.fixture
def hub(repositories):
    """The running server."""
    with serve(repositories) as server:
        yield server


# The variables of huggingface_hub are read when it is imported: a process of its own per test.
SCRIPT = """
import json, sys, time
from dafast import DepthAnything
from dafast.models.checkpoint import CheckpointError
time.sleep = lambda seconds: None  # between the attempts to reach the hub
for name, options in json.loads(sys.argv[1]):
    try:
        model = DepthAnything.from_pretrained(name, device="cpu", dtype="float32", **options)
        total = sum(float(t.double().abs().sum()) for t in model.state_dict().values())
        print(json.dumps({"config": model.config.name, "sum": total}))
    except CheckpointError as error:
        print(json.dumps({"error": str(error)}))
"""


def load_all(
    endpoint: str, home: Path, *calls: tuple[str, dict], **environment: str
) -> tuple[list[dict], str]:
    """Calls from_pretrained in a process whose hub is ``endpoint``; also its stderr."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env={
            **kept,
            "PYTHONPATH": path,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_POSITION": "-1",  # progress bars though stderr is no terminal
            **environment,
        },
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def total(model: DepthAnything) -> float:
    half = (t.half().double().abs().sum().item() for t in model.state_dict().values())
    return sum(half)


@pytest.mark.slow
def test_download_then_the_cache(hub, nano, tmp_path):
    calls = [
        ("someone/own", {}),
        ("someone/nano-hf", {}),
        ("someone/sharded", {}),
        ("someone/own", {"revision": COMMIT}),
        ("someone/described", {"filename": "weights/best.pth"}),
        ("vits", {}),
        ("depth-anything/Depth-Anything-V2-Small", {}),
    ]
    answers, stderr = load_all(url(hub), tmp_path / "home", *calls)

    assert [a.get("config") for a in answers] == [
        *["nano"] * 4,
        "described",
        "vits",
        "v2-vits",
    ], answers
    for answer in answers[:4]:
        assert answer["sum"] == pytest.approx(total(nano), rel=1e-9)
    assert "pytorch_model.bin" in stderr  # the progress bar
    assert "100%" in stderr
    # Once each, whoever asked for it.
    got = [request for request in hub.RequestHandlerClass.requests if request.startswith("GET")]
    assert len(got) == len(set(got))
    assert sum("pytorch_model.bin" in request for request in got) == 1
    assert list((tmp_path / "home").rglob("*.safetensors"))

    # With the variable set, and with no hub to reach, the cache serves all of it.
    hub.RequestHandlerClass.requests.clear()
    offline, _ = load_all(
        url(hub),
        tmp_path / "home",
        *calls,
        ("vitb", {}),
        ("someone/unknown", {}),
        HF_HUB_OFFLINE="1",
    )
    assert offline[: len(calls)] == answers
    assert hub.RequestHandlerClass.requests == []
    vitb, unknown = (answer["error"] for answer in offline[len(calls) :])
    assert "HF_HUB_OFFLINE" in vitb
    assert f"{url(hub)}/LiheYoung/depth_anything_vitb14/resolve/main/pytorch_model.bin" in vitb
    assert "./depth_anything_vitb14/pytorch_model.bin', config='vitb'" in vitb
    assert "HF_HUB_OFFLINE" in unknown
    assert "model.safetensors" in unknown


@pytest.mark.slow
def test_what_the_hub_refuses(hub, tmp_path):
    (tmp_path / "taken").mkdir()
    answers, _ = load_all(
        url(hub),
        tmp_path / "home",
        ("someone/absent", {}),
        ("someone/empty", {}),
        ("someone/odd-name", {}),
        ("someone/odd-name", {"filename": "best.pth", "config": "nano"}),
        ("someone/odd-name", {"filename": "worst.pth"}),
        ("someone/own", {"revision": "v9"}),
        (GATED, {}),
        ("vitl", {}),
    )
    errors = [answer.get("error", "") for answer in answers]
    assert "someone/absent" in errors[0]
    assert "no such repository" in errors[0]
    assert "no local file or folder" in errors[0]
    assert "none of model.safetensors" in errors[1]
    assert "filename=" in errors[2]
    assert answers[3]["config"] == "nano"
    assert "no file 'worst.pth'" in errors[4]
    assert "no revision 'v9'" in errors[5]
    assert "gated" in errors[6]
    assert "no such repository" in errors[7]


@pytest.mark.slow
def test_no_network(tmp_path):
    with socket.socket() as unused:  # bound, but nobody listens: connections are refused
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        answers, _ = load_all(
            endpoint,
            tmp_path / "home",
            ("v2-metric-vkitti-vitb", {}),
            ("someone/own", {}),
            ("someone/own", {"local_files_only": True}),
        )
    preset, repository, local = (answer["error"] for answer in answers)
    file = "depth_anything_v2_metric_vkitti_vitb.pth"
    folder = "Depth-Anything-V2-Metric-VKITTI-Base"
    assert "could not be reached" in preset
    assert f"{endpoint}/depth-anything/{folder}/resolve/main/{file}" in preset
    assert f"from_pretrained('./{folder}/{file}', config='v2-metric-vkitti-vitb')" in preset
    assert "could not be reached" in repository
    assert f"{endpoint}/someone/own/resolve/main/config.json" in repository
    assert "from_pretrained('./own')" in repository
    assert "local_files_only" in local
