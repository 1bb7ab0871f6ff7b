"""Random networks whose output means something, and transformers to compare them with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from tests.models.fake_graphs import FakeMachinery

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # for `from tests.tolerances import ...` under a bare `pytest`
    sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The module, with the classes that the tests need already imported."""
    module = pytest.importorskip("transformers", reason="transformers is not installed")
    assert module.DepthAnythingForDepthEstimation is not None
    assert module.Dinov2Model is not None
    return module


def randomise(model: nn.Module, seed: int) -> None:
    """Fills a network, ours or that of transformers, with weights as far from their defaults as
    training would bring them, at scales that keep every activation of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, mean: float, std: float) -> None:
        parameter.data.copy_(mean + std * torch.randn(parameter.shape, generator=generator))

    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "lambda1")):
            normal(parameter, 0.2, 0.1)
        elif "cls_token" in name or "pos" in name:
            normal(parameter, 0.0, 0.3)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            normal(module.weight, 1.0, 0.1)
            normal(module.bias, 0.0, 0.1)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.in_channels  # kernel and stride are equal: nothing overlaps
            else:
                fan_in = module.weight[0].numel()
            normal(module.weight, 0.0, fan_in**-0.5)
            if module.bias is not None:
                normal(module.bias, 0.0, 0.1)


def calibrate(run: Callable[[], object], last: nn.Conv2d, mean: float, std: float) -> None:
    """Scales the last convolution so that its output, when ``run()`` is called, has this mean
    and standard deviation: a ReLU after it then passes most of it."""
    seen: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        run()
    handle.remove()
    scale = std / seen[0].std()
    last.weight.data.mul_(scale)
    last.bias.data.sub_(seen[0].mean()).mul_(scale).add_(mean)


@pytest.fixture
def model(seed: int) -> nn.Module:
    """A model of `tests.models.checkpoints.TINY` with random weights."""
    # Not above: Triton must not be imported before the settings of `tests/conftest.py`.
    from dafast import DepthAnything
    from tests.models.checkpoints import TINY

    model = DepthAnything(TINY).eval()
    randomise(model, seed)
    model.pretrained.mask_token.normal_()
    return model


@pytest.fixture(scope="session", name="randomise")
def _randomise() -> Callable[[nn.Module, int], None]:
    return randomise


@pytest.fixture(scope="session", name="calibrate")
def _calibrate() -> Callable[..., None]:
    return calibrate


@pytest.fixture
def make_transformers(seed, transformers, randomise, calibrate):
    """Builds transformers' model with random weights whose output is of order 1."""

    from dafast import DepthAnything
    from tests.models.transformers_models import CONFIGS

    def build(name: str = "v1") -> nn.Module:
        ours = DepthAnything(CONFIGS[name]).eval()
        randomise(ours, seed)
        x = torch.randn(1, 3, 56, 56)
        mean, std = (0.0, 1.0) if ours.config.is_metric else (1.0, 0.5)
        calibrate(lambda: ours(x), ours.depth_head.scratch.output_conv2[2], mean, std)
        return ours.to_transformers()

    return build


@pytest.fixture
def served(monkeypatch):
    """How often our forward served a call, as a list that tests compare lengths of."""
    from dafast.models import acceleration

    calls: list[torch.Tensor] = []
    original = acceleration.FastForward.__call__

    def call(self, model, images):
        depth = original(self, model, images)
        if depth is not None:
            calls.append(depth)
        return depth

    monkeypatch.setattr(acceleration.FastForward, "__call__", call)
    return calls


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeMachinery]:
    """CUDA graphs on the CPU; the list of all machinery, the newest last."""
    from dafast.models import cuda_graphs
    from tests.models.fake_graphs import FakeMachinery

    machines: list[FakeMachinery] = []

    def new_machinery(device: torch.device) -> FakeMachinery:
        machines.append(FakeMachinery())
        return machines[-1]

    monkeypatch.setattr(cuda_graphs, "can_capture", lambda device: device.type == "cpu")
    monkeypatch.setattr(cuda_graphs, "new_machinery", new_machinery)
    return machines
