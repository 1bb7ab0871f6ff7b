"""Copies between the host and a GPU, and the size of a batch."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dafast
from dafast.models import transfer
from dafast.models.inference import InferenceOptions, predict_maps
from dafast.models.transfer import MAX_BATCH_TOKENS, Downloads, batch_tokens, bytes_per_token
from tests.tiny import TINY, tiny

GIB = 2**30


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def copies(monkeypatch):
    """Copies that arrive when they are waited for; what was started and waited for, in order."""
    events, numbers = [], itertools.count()

    def start_copy(x):
        number, host = next(numbers), torch.full(x.shape, float("nan"))
        events.append(("start", number))

        def wait():
            events.append(("wait", number))
            host.copy_(x.as_subclass(torch.Tensor))

        return host, wait

    monkeypatch.setattr(transfer, "start_copy", start_copy)
    return events


def test_downloads_wait_only_for_the_oldest(copies, seed):
    given = {key: torch.randn(3, 4) for key in (5, 2, 9, 1, 7, 0)}
    downloads = Downloads()
    for key, x in given.items():
        downloads.add(key, x.clone().as_subclass(OnGpu))
    assert copies == [
        *(("start", i) for i in range(4)),
        *(("wait", 0), ("start", 4), ("wait", 1), ("start", 5)),
    ]
    done = downloads.finish()
    assert copies[8:] == [("wait", i) for i in range(2, 6)]
    assert done.keys() == given.keys()
    assert all(torch.equal(done[key], x) for key, x in given.items())


def test_the_order_of_a_copy_on_streams(monkeypatch):
    """The real copy, with a `torch.cuda` that notes the calls."""
    calls, pinned = [], []

    def stream(name):
        return SimpleNamespace(
            name=name, wait_stream=lambda other: calls.append(f"{name} waits for {other.name}")
        )

    event = SimpleNamespace(
        record=lambda stream: calls.append(f"event on {stream.name}"),
        synchronize=lambda: calls.append("waited"),
    )
    empty = torch.empty

    def pinned_empty(*args, pin_memory, **kwargs):
        pinned.append(empty(*args, **kwargs))
        return pinned[-1]

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream("side"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch, "empty", pinned_empty)
    record = lambda self, stream: calls.append(f"kept for {stream.name}")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    x = torch.arange(6.0)
    host, wait = transfer.start_copy(x)
    wait()
    assert host is pinned[0] and torch.equal(host, x)
    assert calls == ["side waits for current", "event on side", "kept for side", "waited"]


def test_tensors_of_the_host_are_not_copied(copies):
    downloads, x = Downloads(), torch.ones(2)
    downloads.add(0, x)
    assert downloads.finish()[0] is x and not copies
    assert transfer.upload(x, torch.device("cpu")) is x
    there = x.as_subclass(OnGpu)
    there.to = lambda device: ("moved", device)
    assert transfer.upload(there, torch.device("cuda", 1)) == ("moved", torch.device("cuda", 1))


def test_maps_are_fetched_while_the_next_photos_are_computed(copies, monkeypatch, seed):
    """A map leaves as soon as it is there, not when all photos are computed."""
    model = dafast.DepthAnything(TINY).eval()
    photos = [np.random.randint(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(3)]
    wanted = model.infer(photos, size=28, max_batch_tokens=1)
    run, add = model._run_modules, Downloads.add

    def noted(x):
        copies.append(("compute", None))
        return run(x)

    def predict_batch(shape, fill, read, sky):
        return read(noted(fill(None))[:, 0])

    monkeypatch.setattr(model, "predict_batch", predict_batch)
    monkeypatch.setattr(Downloads, "add", lambda self, key, x: add(self, key, x.as_subclass(OnGpu)))
    options = InferenceOptions(size=28, max_batch_tokens=1)
    with torch.no_grad():
        got = predict_maps(model, photos, options)
    assert copies == [
        *(event for i in range(3) for event in (("compute", None), ("start", i))),
        *(("wait", i) for i in range(3)),
    ]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5)


def test_a_batch_fits_the_memory_of_the_gpu(monkeypatch):
    model = dafast.DepthAnything(TINY)
    assert batch_tokens(model) == MAX_BATCH_TOKENS
    monkeypatch.setattr(type(model), "device", torch.device("cuda", 0))
    each = bytes_per_token(model)
    for free, tokens in ((200 * GIB, 65536), (2 * 5000 * each, 5000), (0, 1)):
        monkeypatch.setattr(transfer, "_free_memory", lambda device, free=free: free)
        assert batch_tokens(model) == tokens


class _Peak(TorchDispatchMode):
    """The most memory of tensors that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.sizes[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.sizes = {key: kept for key, kept in self.sizes.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bins", ["", "softplus"])
def test_a_forward_needs_no_more_memory_than_is_planned(bins, dtype, seed):
    """With the proportions of ViT-S, an eighth as wide."""
    changes = dict(max_depth=10.0, bin_centers=bins) if bins else {}
    config = tiny(embed_dim=48, num_heads=3, features=8, out_channels=(6, 12, 24, 48), **changes)
    model = dafast.DepthAnything(config).eval().to(dtype)
    x = torch.randn(4, 3, 84, 84, dtype=dtype)
    with torch.no_grad(), dafast.use_backend("reference"), _Peak() as memory:
        model(x)
    tokens = 4 * 37
    assert memory.peak <= 2 * tokens * bytes_per_token(model), "half of the memory stays free"
    assert memory.peak >= 0.1 * tokens * bytes_per_token(model)


@pytest.mark.gpu
def test_gpu_copies(seed):
    device, downloads = torch.device("cuda"), Downloads()
    given = [torch.randn(1000, 1001) for _ in range(9)]
    for i, x in enumerate(given):
        y = transfer.upload(x, device)
        downloads.add(i, y * 2)
        del y
    done = downloads.finish()
    assert all(torch.equal(done[i], x * 2) and not done[i].is_pinned() for i, x in enumerate(given))
