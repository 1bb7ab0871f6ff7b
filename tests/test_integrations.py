"""The integrations with other programs, as far as they run without them; the Dockerfile."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dafast
from tests.tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parent.parent
BOUND = TOLERANCES[torch.bfloat16].model  # the nodes let the machine choose the dtype
FILES = [*(ROOT / "examples/integrations").glob("*.py"), ROOT / "examples/space/app.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_integration_is_thin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert "dafast._" not in text  # only the public API


def test_comfyui_node(seed: int) -> None:
    module = runpy.run_path(str(ROOT / "examples/integrations/comfyui_node.py"))
    (node,) = module["NODE_CLASS_MAPPINGS"].values()
    inputs = node.INPUT_TYPES()
    names, _ = inputs["required"]["model"]
    assert all(dafast.models.zoo.find(name) for name in names)
    images = torch.rand(2, 40, 60, 3)
    colors, shades = node().predict(images, "nano", 98, "turbo")
    assert colors.shape == (2, 40, 60, 3) and shades.shape == (2, 40, 60)
    assert colors.min() >= 0 and colors.max() <= 1
    assert shades.amin() == 0 and shades.amax() == 1
    alone = load("nano").predict(images[1].permute(2, 0, 1), size=98)
    assert (shades[1] - torch.from_numpy(alone.normalized())).abs().max() <= BOUND


def load(name: str) -> dafast.DepthAnything:
    return dafast.DepthAnything.from_pretrained(name, device="cpu", dtype="float32")


class FakeNode:
    """Stands for `rclpy.node.Node`: keeps what is published."""

    def __init__(self, name: str) -> None:
        self.callbacks: dict[str, Any] = {}
        self.published: list[Any] = []

    def declare_parameter(self, name: str, value: str) -> SimpleNamespace:
        return SimpleNamespace(value=value)

    def create_publisher(self, kind: Any, topic: str, depth: int) -> SimpleNamespace:
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, kind: Any, topic: str, callback: Any, depth: int) -> None:
        self.callbacks[topic] = callback


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "bgra8", "mono8"])
def test_ros2_node(encoding: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "rclpy": {},
        "rclpy.node": {"Node": FakeNode},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": SimpleNamespace, "CameraInfo": SimpleNamespace},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    content = runpy.run_path(str(ROOT / "examples/integrations/ros2_node.py"))
    rgb = np.random.randint(0, 256, (30, 44, 3), np.uint8)
    if encoding == "mono8":
        rgb[:] = rgb[..., :1]
        pixels = rgb[..., :1]
    else:
        pixels = rgb[..., ::-1] if encoding.startswith("bgr") else rgb
        if encoding.endswith("a8"):
            pixels = np.concatenate([pixels, np.full((30, 44, 1), 7, np.uint8)], 2)
    rows = np.zeros((30, 200), np.uint8)  # rows may be longer than the picture
    rows[:, : 44 * pixels.shape[2]] = pixels.reshape(30, -1)
    header = object()
    image = SimpleNamespace(
        data=rows.tobytes(), encoding=encoding, height=30, width=44, step=200, header=header
    )
    np.testing.assert_array_equal(content["to_rgb"](image), rgb)
    if encoding != "bgr8":  # one of them runs the network
        return
    node = content["DepthNode"]()
    node.callbacks["camera_info"](SimpleNamespace(k=[50.0, 0, 22, 0, 51, 15, 0, 0, 1]))
    assert node.intrinsics == (50.0, 51, 22, 15)
    node.callbacks["image"](image)
    (answer,) = node.published
    assert (answer.header, answer.encoding, answer.step) == (header, "32FC1", 176)
    values = np.frombuffer(answer.data, np.float32).reshape(30, 44)
    expected = load("nano").predict(rgb).values
    assert np.abs(values - expected).max() <= BOUND * expected.max()


def test_gradio_space() -> None:
    pytest.importorskip("gradio")
    content = runpy.run_path(str(ROOT / "examples/space/app.py"))
    page = content["build"]()
    assert len(page.fns) == 1
    (photo, colors), mesh, depth = content["predict"](
        np.zeros((40, 60, 3), np.uint8), "nano", "turbo", 60
    )
    assert photo.shape == colors.shape == (40, 60, 3)
    assert Path(mesh).suffix == ".glb" and Path(depth).stat().st_size > 100


def docker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/check_docker.py"))


def test_the_dockerfile_is_clean() -> None:
    lint, text = docker()["lint"], (ROOT / "docker/Dockerfile").read_text()
    assert lint(text) == []
    for old, new, message in (
        ("USER dafast", "USER root", "root"),
        ("python:${PYTHON}-slim AS", "python AS", "version"),
        ("COPY constraints.txt", "COPY nothing.txt", "missing"),
        ("--no-install-recommends", "", "leaves files"),
        ("HEALTHCHECK", "# HEALTHCHECK", "HEALTHCHECK"),
        ("EXPOSE", "EXPOSED", "unknown"),
    ):
        assert old in text
        assert message in "\n".join(lint(text.replace(old, new)))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout by Git")
def test_the_image_holds_what_the_installation_needs() -> None:
    files = docker()["copied_files"]()
    assert {"setup.py", "pyproject.toml", "dafast/serve/page/main.js", "README.md"} <= set(files)
    assert not [name for name in files if name.startswith(("tests/", "dist/"))]
