"""LayerNorm with the add before it, rows in e4m3: the kernel and the specification."""

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import add_layer_norm, add_layer_norm_fp8, use_backend
from tests.ops.test_quantize_fp8 import half_steps
from tests.pairwise import grid

BACKENDS = ["reference", "triton"]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),  # as the packed forward has them
]

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(seed, shape, dtypes=DTYPES[0]):
    """x, branch, gamma, weight, bias; the last three in the dtype of the branch."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape, shape, *[shape[-1:]] * 3)
    made = [torch.randn(size, generator=generator) for size in sizes]
    return made[0].to(dtypes[0]), *(x.to(dtypes[1]) for x in made[1:])


@grid({"backend": BACKENDS, "shape": [(2, 3, 384), (5, 50), (9, 1), (7,)], "dtypes": DTYPES})
def test_matches_float64(backend, shape, dtypes, seed, device):
    x, branch, gamma, weight, bias = inputs(seed, shape, dtypes)
    with use_backend(backend):
        s, rows = add_layer_norm_fp8(x, branch, gamma, weight, bias)
        plain, _ = add_layer_norm(x, branch, gamma, weight, bias)
    assert torch.equal(s, plain)  # the residual stream of the network that is not quantised
    exact = F.layer_norm(s.double(), weight.shape, weight.double(), bias.double(), 1e-6)
    most = exact.abs().amax(-1)
    # The norm in float32 is off by some 1e-6 of its terms; sums of few values may cancel.
    slack = 1e-5 * (most + weight.abs().max() + 1)[..., None]
    assert (rows.scale.double() - most / 448).abs().le(slack[..., 0] / 448).all()
    assert ((rows.dequantize() - exact).abs() <= half_steps(exact, most / 448) + slack).all()


def test_empty_and_strided(seed, device):
    arguments = inputs(seed, (4, 6, 32))
    with use_backend("triton"):
        s, rows = add_layer_norm_fp8(*(x[:0] if x.ndim == 3 else x for x in arguments))
        assert s.shape == rows.values.shape == (0, 6, 32) and rows.scale.shape == (0, 6)
        s, rows = add_layer_norm_fp8(*arguments)
        x, branch, *rest = arguments
        other, again = add_layer_norm_fp8(x.mT.contiguous().mT, branch.mT.contiguous().mT, *rest)
    assert torch.equal(s, other) and torch.equal(rows.dequantize(), again.dequantize())


def test_bad_input():
    x, vector = torch.zeros(2, 4), torch.zeros(4)
    with pytest.raises(ValueError, match="add_layer_norm_fp8 needs x and branch"):
        add_layer_norm_fp8(x, x[:1], vector, vector, vector)
    with pytest.raises(ValueError, match=r"bias must be \(4,\)"):
        add_layer_norm_fp8(x, x, vector, vector, vector[:3])
    with pytest.raises(ValueError, match="at least one channel"):
        add_layer_norm_fp8(x[:, :0], x[:, :0], vector[:0], vector[:0], vector[:0])


@pytest.mark.slow
def test_opcheck(seed, monkeypatch, device):
    monkeypatch.undo()  # opcheck compares allocations of its own
    torch.library.opcheck(
        torch.ops.dafast.add_layer_norm_fp8.default,
        (*inputs(seed, (3, 32)), 1e-6, torch.float32),
        test_utils=("test_schema", "test_faketensor"),
    )
