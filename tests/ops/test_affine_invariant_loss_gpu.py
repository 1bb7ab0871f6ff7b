"""Affine-invariant loss on GPUs: when the backend "cuda" serves, and what GPUs compute."""

import importlib

import pytest
import torch

from dafast.ops import OPS, BackendError, affine_invariant_loss, use_backend
from tests.ops.test_affine_invariant_loss import DTYPES, _inputs, _regions, _run, decide
from tests.tolerances import TOLERANCES

GPU_BACKENDS = ["triton", "cuda"]


class _Extension:
    """An extension with CUDA, on a GPU whose clusters keep maps of up to 1000 pixels."""

    cuda, ops = True, ("affine_invariant_loss",)

    @staticmethod
    def affine_invariant_loss_cluster(device, pixels, regions):
        return 8 if pixels * regions <= 1000 else 0


@pytest.fixture
def cuda_limits(monkeypatch):
    """Takes an extension; what the backend "cuda" would say of tensors on a GPU."""
    from dafast.ops import _extension

    module = importlib.import_module("dafast.ops.affine_invariant_loss")

    def limits(extension, *tensors):
        monkeypatch.setattr(_extension, "_load", lambda: (extension, ""))
        module._why_no_cluster.cache_clear()
        return module._cuda_limits(*tensors)

    yield limits
    module._why_no_cluster.cache_clear()


def test_cuda_serves_maps_that_a_cluster_keeps(cuda_limits):
    x = torch.zeros(2, 20, 30)
    assert cuda_limits(_Extension, x, x, None, None) == ""
    assert "600 pixels" in cuda_limits(_Extension, x, x, None, x > 0)
    large = torch.zeros(1, 20, 60)
    assert "no cluster of thread blocks keeps 1200 pixels" in cuda_limits(_Extension, large, large)
    assert "not torch.float64" in cuda_limits(_Extension, x.double(), x)
    older = type("Older", (), {"cuda": True, "ops": _Extension.ops})
    assert "older version" in cuda_limits(older, x, x)


def test_cuda_serves_only_when_it_is_asked_for():
    backend = OPS["affine_invariant_loss"].backends["cuda"]
    x = torch.zeros(1, 2, 3)
    assert "asked for by name" in backend.preferred(x, x)
    with use_backend("cuda"), pytest.raises(BackendError, match="runs on CUDA tensors"):
        affine_invariant_loss(x, x)


def test_digits_by_the_version_of_triton():
    pytest.importorskip("triton")
    from dafast.kernels.masked_median import BALLOTS, SHARED_ATOMICS, counting

    for version in ("3.4.0", "3.6.0+git1", "3.7.1"):
        assert counting(version, "cuda") is BALLOTS
    for version in ("3.8.0", "3.9.0", "3.10.0", "4.0.0"):
        assert counting(version, "cuda") is SHARED_ATOMICS
        assert counting(version, "interpreter") is SHARED_ATOMICS
        assert counting(version, "hip") is BALLOTS


def test_large_grids_count_more_tiles_a_program():
    from dafast.kernels.affine_invariant_loss import _tiles

    assert _tiles(64, 132, 8) == 8  # maps of 518x518
    assert _tiles(8, 132, 8) == 2
    assert _tiles(1, 132, 8) == 1
    assert _tiles(64, 132, 1) == 1


def test_triton_refuses_maps_that_its_integers_cannot_index():
    from dafast.ops import OPS

    backend = OPS["affine_invariant_loss"].backends["triton"]
    large = torch.zeros(1).expand(1, 50000, 50000)
    assert "2147418112 pixels, not 2500000000" in backend.supports(large, large)
    most = torch.zeros(1).expand(2, 2**15 - 1, 2**16)
    assert backend.supports(most, most) == ""


def _needs(backend, *tensors):
    if why := OPS["affine_invariant_loss"].backends[backend].supports(*tensors):
        pytest.skip(why)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 518, 518), (16, 518, 518), (3, 131, 77), (1, 37, 64)])
def test_gpu_matches_float64(backend, dtype, shape, seed):
    prediction, target, mask, generator = _inputs(seed, shape)
    regions = _regions(mask, generator)
    inputs = [x.cuda() for x in (prediction.to(dtype), target.float(), mask, regions)]
    _needs(backend, *inputs)
    for masks in ((), inputs[2:3], inputs[2:]):
        decide(*inputs[:2], *masks)
        loss, grad = _run(backend, *inputs[:2], *masks)
        again, grad_again = _run(backend, *inputs[:2], *masks)
        assert torch.equal(loss, again) and torch.equal(grad, grad_again)
        _check_gpu(loss, grad, inputs[:2], masks)


def _check_gpu(loss, grad, tensors, masks):
    """Like `_check`, but of millions of pixels a few lie where rounding decides the L1's sign."""
    expected, expected_grad = _run("reference", tensors[0].double(), tensors[1], *masks)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    bound = 4 * TOLERANCES[grad.dtype].op * expected_grad.abs().max() + 2**-25
    off = (grad.double() - expected_grad).abs() > bound
    assert off.float().mean() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_gpu_graph_capture_and_streams(backend, seed):
    prediction, target, mask, generator = _inputs(seed, (4, 518, 518))
    regions = _regions(mask, generator)
    inputs = [x.cuda() for x in (prediction.float(), target.float(), mask, regions)]
    _needs(backend, *inputs)
    expected, expected_grad = _run(backend, *inputs)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(_run(backend, *inputs))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    leaf = inputs[0].clone().requires_grad_()
    with use_backend(backend), torch.cuda.graph(graph):
        loss = affine_invariant_loss(leaf, *inputs[1:3], regions=inputs[3])
        grad = torch.autograd.grad(1.7 * loss, leaf)[0]
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for got, got_grad in [*results, (loss.detach(), grad)]:
        assert torch.equal(got, expected) and torch.equal(got_grad, expected_grad)
