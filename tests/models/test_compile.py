"""Training under `torch.compile`: gradients, not only losses, and pictures of many sizes."""

import dataclasses
import io

import pytest
import torch

from dafast import DepthAnything
from dafast.config import get_preset
from dafast.models.dpt import DPTHead
from dafast.models.segmentation_network import DPTSegmentationHead
from dafast.models.zoedepth import MetricBinsHead
from dafast.ops.resize_bilinear import interpolate

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
    # Not randn_like, which fills in the order of the strides.
    upstream = torch.randn(out.shape, dtype=out.dtype)
    grads = torch.autograd.grad(out, [*leaves, *trained.values()], upstream)
    names = [*(f"input {i}" for i in range(len(leaves))), *trained]
    return {"output": out.detach(), **dict(zip(names, grads, strict=True))}


def check(got, expected):
    for name, wanted in expected.items():
        error = (got[name] - wanted).abs().max()
        assert error <= 1e-4 * wanted.abs().max() + 1e-6, name
    assert sum(wanted.abs().max() > 0 for wanted in expected.values()) > len(expected) // 2


def check_compiled(make, taps=4, **options):
    """In float64: the gradient of a bias is a sum that cancels, which float32 rounds coarsely."""
    decoder = make().double()
    taps = [torch.randn(1, 5 * 4, TINY["embed_dim"], dtype=torch.float64) for _ in range(taps)]
    expected = gradients(lambda x: decoder(x, 5, 4), decoder, taps)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True, **options)
    check(gradients(lambda x: compiled(x, 5, 4), decoder, taps), expected)


class Resized(torch.nn.Module):
    """The smallest part of a decoder: a convolution on each side of an interpolation."""

    def __init__(self):
        super().__init__()
        self.before, self.after = (torch.nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, taps, rows, columns):
        x = taps[0].transpose(1, 2).unflatten(2, (rows, columns))[:, :4]
        x = interpolate(self.before(x), (2 * rows + 3, 3 * columns), align_corners=True)
        return self.after(x)


@pytest.mark.slow  # compiles C++
def test_inductor_compiles_an_interpolation(seed):
    check_compiled(Resized, taps=1)


@pytest.mark.exhaustive  # two minutes of C++ compiler
def test_inductor_gives_every_gradient(seed):
    """PyTorch 2.13's own bilinear backward gives 0 there for everything before it."""
    check_compiled(DECODERS["relu"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", DECODERS)
def test_inductor_sees_no_bilinear_backward(kind, seed):
    """Which it would decompose; the graphs are those that it gets."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    check_compiled(DECODERS[kind], backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    forward, backward = graphs
    assert not any("upsample" in name for name in forward | backward)
    assert any("dafast" in name and "backward" in name for name in backward)


# Rows and columns of patches. With fewer than 64 tokens the op of attention prefers another
# backend, and the 3x3 convolutions have a branch for their smallest maps: a trace for each.
MANY = ((8, 9), (9, 8), (7, 10), (11, 6), (8, 8), (7, 9), (13, 5), (6, 12), (4, 17))
FEW = ((4, 5), (6, 4), (5, 8), (9, 6), (8, 7), (7, 9), (11, 3), (2, 2), (3, 10))


@pytest.mark.slow  # two traces of the whole network
@pytest.mark.parametrize(
    ("sizes", "graphs"), [(MANY, 2), pytest.param(FEW, 4, marks=pytest.mark.exhaustive)]
)
def test_nine_sizes_are_few_graphs(sizes, graphs, seed):
    """A graph for each size would end at PyTorch's limit of 8."""
    from torch._dynamo.testing import CompileCounterWithBackend

    # In float64, for a value that rounding takes past a kink has another gradient.
    model = DepthAnything(tiny("relu")).double().train()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for rows, columns in sizes:
        x = torch.randn(1, 3, 14 * rows, 14 * columns, dtype=torch.float64)
        expected = gradients(lambda x: model(x[0]), model, [x])
        check(gradients(lambda x: compiled(x[0]), model, [x]), expected)
    assert counter.frame_count <= graphs


def random_model(rule="official", kind="relu"):
    """In float64, so that an output that cancels keeps its digits."""
    config = dataclasses.replace(tiny(kind), position_embedding=rule)
    model = DepthAnything(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


SMALL = ((2, 4, 3), (1, 3, 5), (3, 4, 4))
TRAINED = (1, 37, 37)  # this grid has position embeddings of its own


def check_sizes(program, model, sizes=(*SMALL, TRAINED)):
    for batch, rows, columns in sizes:
        x = torch.randn(batch, 3, 14 * rows, 14 * columns, dtype=torch.float64)
        expected = model(x)
        error = (program(x) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), (batch, rows, columns)


@pytest.mark.slow
def test_an_export_holds_for_every_batch_and_size(seed):
    from torch.export import Dim

    model = random_model()
    sides = [14 * Dim(name, min=2, max=100) for name in ("rows", "columns")]
    with torch.no_grad():
        x = torch.randn(2, 3, 56, 70, dtype=torch.float64)
        shapes = {"x": {0: Dim("batch", min=1, max=16), 2: sides[0], 3: sides[1]}}
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        targets = {str(node.target) for node in program.graph.nodes}
        assert not any("dafast" in name for name in targets), "it runs where dafast is missing"
        check_sizes(program.module(), model)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["official", "transformers"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_holds_for_every_batch_and_size(rule, seed):
    model = random_model(rule)
    with torch.no_grad():
        example = torch.randn(2, 3, 56, 70, dtype=torch.float64)
        traced = torch.jit.trace(model, example, check_trace=False)
        check_sizes(traced, model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["relu", "sigmoid"])
def test_an_onnx_file_holds_for_every_batch_and_size(kind, seed):
    """The exporter of TorchScript; onnx runs the file itself, slowly and without a runtime."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx")
    from onnx.reference import ReferenceEvaluator

    model, file = random_model(kind=kind), io.BytesIO()
    example = torch.randn(2, 3, 56, 70, dtype=torch.float64)
    with torch.no_grad():
        torch.onnx.export(
            model, (example,), file, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "b", 2: "h", 3: "w"}, "y": {0: "b", 1: "h", 2: "w"}},
        )  # fmt: skip
        run = ReferenceEvaluator(onnx.load_from_string(file.getvalue())).run
        check_sizes(lambda x: torch.from_numpy(run(None, {"x": x.numpy()})[0]), model, SMALL)


def test_the_unused_unit_waits_for_no_gradient(seed):
    """In a loop of the user's own, `DistributedDataParallel` would wait for it."""
    for kind in METRIC:
        model = DepthAnything(tiny(kind)).train()
        model(torch.randn(1, 3, 56, 70)).sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.requires_grad != ("refinenet4.resConfUnit1" in name), name
