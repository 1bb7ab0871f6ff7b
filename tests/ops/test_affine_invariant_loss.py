"""Affine-invariant loss: against plain numpy, its invariances, its gradients, its edge cases."""

import numpy as np
import pytest
import torch
from packaging.version import Version

from bench.depth_like import depth_like
from dafast.ops import affine_invariant_loss, affine_invariant_loss_reference, use_backend
from dafast.ops.affine_invariant_loss import _normalise
from tests.instruction_sets import CPP, needs_extension
from tests.ops import parity
from tests.pairwise import grid

KERNELS = ["triton", CPP]
BACKENDS = ["reference", *KERNELS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _numpy_map(prediction, target, mask):
    """The formula once more, independently: sort for the lower median."""

    def normalise(values):
        values = np.sort(values)[(len(values) - 1) // 2], values
        shift, values = values
        return (values - shift) / max(np.abs(values - shift).mean(), 1e-6)

    if not mask.any():
        return 0.0
    return np.abs(normalise(prediction[mask]) - normalise(target[mask])).mean()


def _inputs(seed, shape=(3, 17, 23), share=0.7):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(shape, generator=generator, dtype=torch.float64)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < share
    return prediction, target, mask, generator


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 23), (2, 8, 8), (1, 40, 31)])
def test_matches_numpy(shape, seed):
    prediction, target, mask, _ = _inputs(seed, shape)
    expected = np.mean([_numpy_map(*(x[i].numpy() for x in (prediction, target, mask)))
                        for i in range(len(prediction))])  # fmt: skip
    loss = affine_invariant_loss(prediction, target, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    full = affine_invariant_loss(prediction, target)
    assert full.item() == affine_invariant_loss(prediction, target, mask | True).item()


def test_regions_are_area_weighted(seed):
    prediction, target, mask, generator = _inputs(seed)
    regions = torch.zeros_like(mask)
    regions[0, 3:9, 2:15] = True
    regions[1] = True  # the second region is empty
    regions[2] = torch.rand(regions[2].shape, generator=generator) < 0.2
    expected = 0.0
    for i in range(len(prediction)):
        p, t, m, r = (x[i].numpy() for x in (prediction, target, mask, regions))
        expected += r.mean() * _numpy_map(p, t, m & r)
        expected += (1 - r.mean()) * _numpy_map(p, t, m & ~r)
    loss = affine_invariant_loss(prediction, target, mask, regions=regions)
    assert loss.item() == pytest.approx(expected / len(prediction), rel=1e-6)


def test_invariant_to_scale_and_shift(seed):
    prediction, target, mask, _ = _inputs(seed)
    loss = affine_invariant_loss(prediction, target, mask)
    other = affine_invariant_loss(3.7 * prediction - 2, 0.2 * target + 5, mask)
    assert other.item() == pytest.approx(loss.item(), rel=1e-9)
    assert affine_invariant_loss(2 * target + 1, target, mask).item() < 1e-12


def test_gradcheck(fixed_seed):
    """The inputs are fixed: of some draws a step of gradcheck exchanges the median."""
    prediction, target, mask, _ = _inputs(fixed_seed, (2, 4, 5))
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: affine_invariant_loss_reference(p, target, mask), [prediction]
    )


def test_gradient_shares_ties_and_skips_masked(seed):
    prediction, target, mask, _ = _inputs(seed, (1, 12, 12))
    prediction = (prediction * 4).floor() / 4  # many pixels equal to the median
    prediction.requires_grad_()
    (grad,) = torch.autograd.grad(affine_invariant_loss(prediction, target, mask), prediction)
    assert (grad[~mask] == 0).all()
    values = prediction[mask]
    tied = values == values.median()
    assert tied.sum() > 1
    # Scale and shift of the prediction do not matter, so the gradient is orthogonal to both.
    assert grad.sum().abs() < 1e-9
    assert (grad * prediction).sum().abs() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_leaks_in_from_masked_pixels(dtype, seed):
    prediction, target, mask, _ = _inputs(seed)
    mask[1] = False  # one map without any valid pixel
    clean = prediction.to(dtype).masked_fill(~mask, 0).requires_grad_()
    dirty = prediction.to(dtype).masked_fill(~mask, float("nan")).requires_grad_()
    losses = [
        affine_invariant_loss(clean, target.masked_fill(~mask, 0), mask),
        affine_invariant_loss(dirty, target.masked_fill(~mask, float("inf")), mask),
    ]
    grads = [
        torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (clean, dirty), strict=True)
    ]
    assert losses[0].item() == losses[1].item() and losses[0].isfinite()
    assert losses[0].dtype == torch.float32
    assert torch.equal(grads[0], grads[1])
    assert (grads[1][~mask] == 0).all()


@pytest.mark.parametrize("mask_value", [True, False])
def test_degenerate_maps_give_finite_numbers(mask_value, device):
    prediction = torch.zeros(2, 5, 5, requires_grad=True)
    target = torch.full((2, 5, 5), 0.25)
    mask = torch.full((2, 5, 5), mask_value)
    loss = affine_invariant_loss(prediction, target, mask)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None and (prediction.grad == 0).all()


def test_target_gets_no_gradient(seed):
    prediction, target, mask, _ = _inputs(seed)
    prediction.requires_grad_(), target.requires_grad_()
    affine_invariant_loss(prediction, target, mask).backward()
    assert target.grad is None and prediction.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "one shape"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), "one shape"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).int()), "floating point"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2, 3)), "mask must be bool"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        affine_invariant_loss(*arguments)


# From here on every backend against the float64 reference.


def _regions(mask, generator):
    """A box in the first map, pixels anywhere in the others."""
    regions = torch.rand(mask.shape, generator=generator) < 0.3
    regions[0] = False
    regions[0, 1 : mask.shape[1] // 2, 2 : mask.shape[2] // 2] = True
    return regions


def _run(backend, prediction, target, mask=None, regions=None):
    def op(prediction):
        return affine_invariant_loss(prediction, target, mask, regions=regions)

    return parity.run(backend, op, [prediction], [torch.tensor(1.7)])


def decide(prediction, target, mask=None, regions=None):
    """Moves predictions, in place, that differ from the target by little more than rounding.

    After normalisation, that is. The gradient of a pixel has the sign of this difference, so one
    rounding more or less would exchange it for its negative. Where one of the two is a median, it
    is exactly 0, and rounding does not matter.
    """
    valid = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    regions_ = [valid] if regions is None else [valid & regions, valid & ~regions]
    moved = True
    while moved:
        moved = False
        for inside in regions_:
            for p, t, m in zip(prediction, target, inside, strict=True):
                if m.any():
                    ours, theirs = p[m].double(), t[m].double()
                    a, b = _normalise(ours), _normalise(theirs)
                    near = (a != b) & ((a - b).abs() < 1e-5) & (a != 0) & (b != 0)
                    if near.any():
                        step = 0.1 * (ours - ours.median()).abs().mean()
                        p[m] = (ours + near * step).to(p.dtype)
                        moved = True


def _check(backend, prediction, target, mask=None, regions=None):
    decide(prediction, target, mask, regions)
    loss, grad = _run(backend, prediction, target, mask, regions)
    expected, expected_grad = _run("reference", prediction.double(), target, mask, regions)
    assert loss.dtype == torch.float32 and grad.dtype == prediction.dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6, nan_ok=True)
    assert torch.equal(grad.isnan(), expected_grad.isnan())
    # Subnormal float16 gradients are off by half of their own spacing, 2^-24.
    floor = 2**-25 if prediction.dtype == torch.float16 else 1e-12
    expected_grad = expected_grad.nan_to_num(0)
    # The pixel of the median has the sum of all gradients, which may cancel: float32 rounds sums
    # on the way, and those are as large as the square root of the number of terms.
    floor += 4e-7 * float(expected_grad.norm())
    parity.assert_within(grad.nan_to_num(0), expected_grad, steps=2, slack=floor)
    if mask is not None:
        assert (grad[~mask] == 0).all()
    return loss, grad


@grid(
    {
        "backend": BACKENDS,
        "dtypes": [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.bfloat16),
            (torch.float32, torch.float16),
        ],
        "mask_and_regions": ["none", "mask", "regions", "both"],
    }
)
def test_matches_float64(backend, dtypes, mask_and_regions, seed, poisoned, device):
    prediction, target, mask, generator = _inputs(seed, (2, 17, 23))
    _check(
        backend,
        (4 * prediction - 2).to(dtypes[0]),
        (target - 0.3).to(dtypes[1]),
        mask if mask_and_regions in ("mask", "both") else None,
        _regions(mask, generator) if mask_and_regions in ("regions", "both") else None,
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 15), (3, 8, 16), (1, 40, 31)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, shape, seed, poisoned, device):
    # Not two or three pixels: their normalised maps may be equal but for rounding, and the gradient
    # is then that of rounding.
    prediction, target, mask, _ = _inputs(seed, shape)
    _check(backend, prediction.float(), target.float(), mask)


@pytest.mark.parametrize("with_regions", [False, True])
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5)])
@pytest.mark.parametrize("backend", KERNELS)
def test_no_pixels(backend, shape, with_regions, device):
    regions = torch.zeros(shape, dtype=torch.bool) if with_regions else None
    loss, grad = _run(backend, torch.zeros(shape), torch.zeros(shape), regions=regions)
    assert loss.item() == 0 and grad.shape == shape


@pytest.mark.parametrize(
    "kind", ["quantised", "relu", "constant", "constants", "equal", "nearly constant", "huge"]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_extreme_values(backend, kind, seed, poisoned, device):
    prediction, target, mask, generator = _inputs(seed, (2, 13, 24))
    prediction, target = prediction.float(), target.float()
    regions = _regions(mask, generator)
    if kind == "quantised":  # both zeros among them
        prediction = (8 * prediction - 4).round() / 4 * torch.where(target < 0.5, -1, 1)
    elif kind == "relu":
        prediction = (prediction - 0.6).relu()
    elif kind == "constant":
        prediction = torch.full_like(prediction, 0.3)
    elif kind == "constants":
        prediction, target = torch.full_like(prediction, 0.3), torch.full_like(target, 0.7)
    elif kind == "equal":
        target = prediction.clone()
    elif kind == "nearly constant":  # the scale is clamped, and not zero
        prediction = 2**-21 * (prediction * 16).round() / 16
    else:
        prediction, target = 1e30 * prediction - 3e29, 1e-30 * target
    loss, grad = _check(backend, prediction, target, mask, regions)
    if kind in ("equal", "constants"):
        assert loss.item() == 0 and (grad == 0).all()


@grid({"backend": BACKENDS, "dtype": DTYPES, "with_regions": [False, True]})
def test_depth_like_maps(backend, dtype, with_regions, seed, poisoned, device):
    _, _, mask, generator = _inputs(seed, (2, 31, 40))
    prediction, target = depth_like(generator, (2, 31, 40))
    assert 0.2 < (prediction == 0).float().mean() < 0.8
    _check(
        backend,
        prediction.to(dtype),
        target,
        mask,
        _regions(mask, generator) if with_regions else None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1, 3000])
@pytest.mark.parametrize("backend", KERNELS)
def test_deviations_of_neighbouring_floats(backend, spread, seed, poisoned, device):
    """Values a few steps of float32 around the median, where the last digit's interval ends."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.tensor([0x49800400, 0x4979F800, 0xC9C80400 - 2**32, 0x49C803FF])[:, None, None]
    bits = bits + torch.randint(-spread, spread + 1, (4, 19, 27), generator=generator)
    values = bits.to(torch.int32).view(torch.float32)
    mask = torch.rand(values.shape, generator=generator) < 0.8
    _, coefficients = torch.ops.dafast.affine_invariant_loss(
        values, values.flip(0), mask, None, backend
    )
    for map, (got, valid) in enumerate(zip(coefficients[:, 0], mask, strict=True)):
        for which, x in enumerate((values[map], values[-1 - map])):
            x = x[valid].double()
            assert got[2 * which] == x.median()
            scale = (x - x.median()).abs().mean()
            assert 1 / got[2 * which + 1].item() == pytest.approx(scale.item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "depth-like"])
def test_short_digits(kind, seed, monkeypatch, poisoned, device):
    """Where `tl.histogram` counts with ballots."""
    from dafast.kernels import affine_invariant_loss as kernels
    from dafast.kernels.masked_median import BALLOTS

    prediction, target, mask, generator = _inputs(seed, (2, 11, 24))
    regions = None
    if kind == "depth-like":
        prediction, target = depth_like(generator, (2, 11, 24))
        regions = _regions(mask, generator)
    monkeypatch.setattr(kernels, "counting", lambda *_: BALLOTS)
    _check("triton", prediction.float(), target.float(), mask, regions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_maps_and_regions_count_zero(backend, seed, poisoned, device):
    prediction, target, mask, generator = _inputs(seed, (3, 9, 15))
    regions = _regions(mask, generator)
    mask[0] = False
    regions[1] = True  # no second region
    mask[2] &= regions[2]  # no valid pixel in the second region
    _, grad = _check(backend, prediction.float(), target.float(), mask, regions)
    assert (grad[0] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_outside_the_mask_changes_nothing(backend, value, seed, poisoned, device):
    prediction, target, mask, generator = _inputs(seed, (2, 11, 16))
    prediction, target, regions = prediction.float(), target.float(), _regions(mask, generator)
    clean = _run(backend, prediction, target, mask, regions)
    dirty = _run(backend, prediction.masked_fill(~mask, value), target.masked_fill(~mask, value),
                 mask, regions)  # fmt: skip
    parity.assert_equal(clean, dirty)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["prediction", "target"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_not_finite_inside_the_mask_shows_as_in_the_reference(backend, where, value, seed, device):
    prediction, target, mask, _ = _inputs(seed, (2, 11, 16))
    inputs = {"prediction": prediction.float(), "target": target.float()}
    mask[0, 3, 5] = True
    inputs[where][0, 3, 5] = value
    loss, _ = _check(backend, **inputs, mask=mask)
    assert loss.isnan()


@pytest.mark.parametrize("kind", ["sliced", "batch", "transposed", "expanded"])
@pytest.mark.parametrize("backend", KERNELS)
def test_strided_inputs(backend, kind, seed, poisoned, device):
    prediction, target, mask, generator = _inputs(seed, (2, 12, 20))
    inputs = [prediction.float(), target.float(), mask, _regions(mask, generator)]
    if kind == "sliced":
        inputs = [torch.nn.functional.pad(x, (1, 2))[..., 1:-2] for x in inputs]
    elif kind == "batch":
        inputs = [x.repeat_interleave(2, 0)[1::2] for x in inputs]
    elif kind == "transposed":
        inputs = [x.mT.contiguous().mT for x in inputs]
    else:
        inputs[2:] = [x[:1].expand_as(x) for x in inputs[2:]]
    strided = _run(backend, *inputs)
    parity.assert_equal(strided, _run(backend, *(x.contiguous() for x in inputs)))


@pytest.mark.parametrize("backend", KERNELS)
def test_maps_of_any_stride_are_read_in_place(backend, seed, monkeypatch, device):
    prediction, target, mask, _ = _inputs(seed, (4, 9, 16))
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda *_: pytest.fail("a copy was made"), raising=True
    )
    _run(backend, prediction.float()[::2], target.float()[1::2], mask[::2])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.slow
def test_full_size_map_twice_bit_equal(backend, seed, poisoned):
    prediction, target, mask, generator = _inputs(seed, (1, 518, 518))
    regions = _regions(mask, generator)
    inputs = (prediction.float(), target.float(), mask, regions)
    loss, grad = _check(backend, *inputs)
    parity.assert_equal(_run(backend, *inputs), [loss, grad])


@pytest.mark.parametrize("chunks", [1, 1024, 1025, 2400])
def test_reduce_adds_up_more_chunks_than_one_step_takes(chunks, seed, device):
    from dafast.kernels.affine_invariant_loss import _affine_invariant_loss_reduce_kernel

    losses = torch.randn(chunks, generator=torch.Generator().manual_seed(seed))
    state, loss = torch.zeros(16, dtype=torch.int32), torch.empty(())
    _affine_invariant_loss_reduce_kernel[(1,)](
        state, state, losses, torch.zeros(2 * chunks), torch.zeros(8), loss, 1, chunks, 4,
        DONE=3, STATE=8, COEFFICIENTS=8, UNIT=1, REGIONS=1,
    )  # fmt: skip
    torch.testing.assert_close(loss.double(), losses.double().sum(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", KERNELS)
def test_only_the_loss_is_differentiable(backend, seed):
    """What the backward keeps gets no gradient, and autograd fills none with zeros for it."""
    from dafast.ops import OPS
    from dafast.ops.affine_invariant_loss import _op

    prediction, target, _, _ = _inputs(seed, (2, 8, 9))
    inputs = (prediction.float().requires_grad_(), target.float(), None, None, backend)
    assert OPS["affine_invariant_loss"].backends[backend].supports(*inputs[:2]) == ""
    for op in (_op, torch.ops.dafast.affine_invariant_loss):
        assert [x.requires_grad for x in op(*inputs)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_and_compile(backend, with_masks, seed):
    prediction, target, mask, generator = _inputs(seed, (2, 8, 9))
    prediction, target = prediction.float().requires_grad_(), target.float()
    regions = _regions(mask, generator) if with_masks else None
    mask = mask if with_masks else None
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.dafast.affine_invariant_loss.default,
            (prediction, target, mask, regions, backend),
        )
        torch._dynamo.reset()  # traced code keeps its backend
        compiled = torch.compile(affine_invariant_loss, backend="aot_eager", fullgraph=True)
        loss = compiled(prediction, target, mask, regions=regions)
        grad = torch.autograd.grad(1.7 * loss, prediction)[0]
    expected, expected_grad = _run(backend, prediction, target, mask, regions)
    assert torch.equal(loss, expected) and torch.equal(grad, expected_grad)


def test_launches(seed, monkeypatch):
    """Five kernels and a memset forward, one kernel backward; five of them read the inputs.

    Shorter digits, of an older Triton, take one more.
    """
    import triton
    from dafast.kernels import affine_invariant_loss as kernels

    launched = []

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    for name in names:
        monkeypatch.setattr(kernels, name, Counted(name, getattr(kernels, name)))
    prediction, target, mask, _ = _inputs(seed, (2, 8, 9))
    _run("triton", prediction.float(), target.float(), mask)
    short = [name.removeprefix("_affine_invariant_loss_") for name in launched]
    passes = 3 if Version(triton.__version__) >= Version("3.8") else 4
    assert short == [
        *passes * ["histogram_kernel"], "l1_kernel", "reduce_kernel", "bwd_kernel"
    ]  # fmt: skip


def test_triton_leaves_float64_to_the_reference():
    from dafast.ops import BackendError

    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    with use_backend("triton"), pytest.raises(BackendError, match=r"not torch\.float64"):
        affine_invariant_loss(x, x)


@needs_extension
@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 3, 5), (2, 4, 5), (4, 5)])
def test_extension_refuses_maps_of_two_shapes(shape):
    op = torch.ops.dafast_C.affine_invariant_loss
    x, other = torch.ones(1, 4, 5), torch.ones(shape)
    out = torch.empty(()), torch.empty(2, 1, 8)
    for arguments in ((x, other, None), (x, x, other.bool())):
        with pytest.raises(RuntimeError, match="of one shape"):
            op(*arguments, None, 1e-6, *out)
