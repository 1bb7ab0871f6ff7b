"""Training under `torch.compile`: gradients, not only losses, and pictures of many sizes."""

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dafast import DepthAnything
from dafast.config import get_preset
from dafast.models.dpt import DPTHead
from dafast.models.segmentation import DPTSegmentationHead
from dafast.models.zoedepth import MetricBinsHead

TINY = {
    "embed_dim": 16,
    "num_heads": 1,
    "num_layers": 4,
    "out_indices": (0, 1, 2, 3),
    "features": 8,
    "out_channels": (4, 4, 4, 4),
}
METRIC = {"relu": "vits", "sigmoid": "v2-metric-hypersim-vits", "bins": "metric-indoor-vitl"}


def tiny(kind):
    return dataclasses.replace(get_preset(METRIC[kind]), **TINY)


class Bins(torch.nn.Module):
    """The metric decoder with bins, as `DepthNetwork` joins its parts."""

    def __init__(self, config):
        super().__init__()
        self.depth, self.bins = DPTHead(config), MetricBinsHead(config)

    def forward(self, taps, rows, columns):
        return self.bins(*self.depth.activations(taps, rows, columns))


DECODERS = {
    "relu": lambda: DPTHead(tiny("relu")),
    "sigmoid": lambda: DPTHead(tiny("sigmoid")),
    "bins": lambda: Bins(tiny("bins")),
    "segmentation": lambda: DPTSegmentationHead(tiny("relu"), 3).eval(),
}


def gradients(call, module, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = call(leaves)
    trained = {k: p for k, p in module.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, [*leaves, *trained.values()], upstream)
    names = [*(f"input {i}" for i in range(len(leaves))), *trained]
    return {"output": out.detach(), **dict(zip(names, grads, strict=True))}


def check(got, expected):
    for name, wanted in expected.items():
        error = (got[name] - wanted).abs().max()
        assert error <= 1e-4 * wanted.abs().max() + 1e-6, name
    assert sum(wanted.abs().max() > 0 for wanted in expected.values()) > len(expected) // 2


@pytest.mark.slow  # inductor calls a C++ compiler
@pytest.mark.parametrize("kind", DECODERS)
def test_inductor_gives_every_gradient(kind, seed):
    """PyTorch 2.13's own bilinear backward gives 0 there for everything before it."""
    decoder = DECODERS[kind]()
    taps = [torch.randn(1, 5 * 4, TINY["embed_dim"]) for _ in range(4)]
    expected = gradients(lambda x: decoder(x, 5, 4), decoder, taps)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True)
    check(gradients(lambda x: compiled(x, 5, 4), decoder, taps), expected)


@pytest.mark.parametrize("rule", ["official", "transformers"])
def test_nine_sizes_are_few_graphs(rule, seed):
    config = dataclasses.replace(tiny("relu"), position_embedding=rule)
    model = DepthAnything(config).train()
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for rows, columns in zip(
        (4, 6, 5, 9, 8, 7, 11, 37, 3), (5, 4, 8, 6, 7, 9, 3, 37, 10), strict=True
    ):
        x = torch.randn(1, 3, 14 * rows, 14 * columns)
        expected = gradients(lambda x: model(x[0]), model, [x])
        check(gradients(lambda x: compiled(x[0]), model, [x]), expected)
    assert graphs.frame_count <= 6, "a graph for each size ends at PyTorch's limit of 8"
