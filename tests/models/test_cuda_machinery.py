"""What captures and replays CUDA graphs: its order of work, and on a GPU its results."""

import concurrent.futures
import contextlib
import copy
import dataclasses
import gc
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dafast.config import get_preset
from dafast.models import cuda_graphs
from tests.models.fake_graphs import images, in_place, make, modules, photo, replaced_data


class _Cuda:
    """What `CudaMachinery` uses of `torch.cuda`; notes the calls that order work."""

    def __init__(self, monkeypatch):
        self.calls, self.current, self.capturing = [], "caller", False
        self.signature = inspect.signature(torch.cuda.graph)
        for name in ("Stream", "Event", "current_stream", "graph", "stream", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.new_pool)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append("empty_cache"))
        self.pools = 0

    def new_pool(self):
        self.pools += 1
        return self.pools

    def replay(self):
        self.calls.append(f"replay on {self.current}")

    def Stream(self, device=None):
        return self._stream("side")

    def _stream(self, name):
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.calls.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.calls.append(f"{name} waits for done"),
        )

    def Event(self):
        return SimpleNamespace(record=lambda stream: self.calls.append(f"done on {stream.name}"))

    def current_stream(self, device=None):
        return self._stream(self.current)

    def set_stream(self, stream):
        self.current = stream.name

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, *args, **kwargs):
        bound = self.signature.bind(*args, **kwargs).arguments
        self.calls.append(f"capture in pool {bound['pool']}, {bound['capture_error_mode']}")
        self.current, self.capturing = bound["stream"].name, True
        yield  # an error leaves the stream as it is, as `torch.cuda.graph` may
        self.current, self.capturing = "caller", False


def test_the_order_of_work_on_streams(monkeypatch):
    """The real machinery, with a `torch.cuda` that notes the calls."""
    cuda = _Cuda(monkeypatch)
    machine = cuda_graphs.CudaMachinery(torch.device("cuda", 0))
    x = torch.ones(3)[1:]  # a part of a tensor, at an address of its own alignment

    def run(given):
        assert given.data_ptr() % 16 == 0, "the capture would compile other kernels"
        cuda.calls.append(f"run on {cuda.current}")
        assert gc.isenabled() is not cuda.capturing, "a collected kernel would spoil the capture"
        return given + 1

    with machine.turn():
        graph = machine.capture(run, x)
    assert cuda.calls == [
        "caller waits for done", "side waits for caller", "run on side", "caller waits for side",
        "capture in pool 1, thread_local", "run on side", "done on caller",
    ]  # fmt: skip
    assert graph.x is not x and graph.out.shape == x.shape and machine.why_not() == ""
    cuda.calls.clear()
    cuda.current = "other"
    with machine.turn():
        graph.replay()
    assert cuda.calls == ["other waits for done", "replay on other", "done on other"]
    cuda.current = "caller"
    runs = iter([x, RuntimeError("not permitted")])

    def fail(given):
        result = next(runs)
        if isinstance(result, Exception):
            raise result
        return result

    with machine.turn(), pytest.raises(RuntimeError, match="not permitted"):
        machine.capture(fail, x)
    assert cuda.current == "caller" and machine.pool == 2, "the old pool may be half open"
    assert gc.isenabled()
    machine.reset()
    assert machine.pool == 3 and cuda.calls[-1] == "empty_cache"
    cuda.capturing = True
    assert machine.why_not() == "a CUDA graph is being captured"


@pytest.fixture(scope="module")
def on_gpu(run_seed):
    return make(dataclasses.replace(get_preset("nano"), num_layers=4, out_indices=(0, 1, 2, 3)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_gpu_graphs_equal_the_modules_to_the_bit(dtype, on_gpu, seed):
    model = copy.deepcopy(on_gpu).to("cuda", dtype).optimize()
    sizes = [(1, 70, 98), (2, 70, 98), (1, 126, 56)]
    for round_ in range(4):
        for size in sizes:
            x = images(*size).to("cuda", dtype)
            assert torch.equal(model(x), modules(model, x)), (round_, size)
    assert len(model._optimized._graphs) == len(sizes)
    in_place(model)
    x = images(*sizes[0]).to("cuda", dtype)
    assert torch.equal(model(x), modules(model, x))
    replaced_data(model)
    for _ in range(3):
        assert torch.equal(model(x), modules(model, x))


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_streams_and_threads(on_gpu, seed):
    model = copy.deepcopy(on_gpu).to("cuda").optimize()
    inputs = [images(1 + i % 3, 70, 98).cuda() for i in range(30)]
    wanted = [modules(model, x) for x in inputs]
    torch.cuda.synchronize()

    def call(x):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            out = model(x)
            torch.cuda.current_stream().synchronize()
            return out

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(call, inputs), wanted))


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_a_callers_capture_gets_the_modules(on_gpu, seed):
    model = copy.deepcopy(on_gpu).to("cuda").optimize()
    x = images(1, 70, 98).cuda()
    for _ in range(3):
        wanted = model(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(x)
    graph.replay()
    assert torch.equal(out, wanted)


@pytest.mark.gpu
def test_gpu_infer_equals_the_modules(on_gpu, seed):
    model = copy.deepcopy(on_gpu).to("cuda")
    plain = copy.deepcopy(model).optimize(cuda_graphs=False)
    cuda_graphs.use_channels_last(plain)
    photos = [photo(90, 130) for _ in range(9)] + [photo(50, 60)]
    for _ in range(3):
        for a, b in zip(model.infer(photos), plain.infer(photos), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(model.infer(photos[0]), plain.infer(photos[0]))
    assert model._optimized._graphs
