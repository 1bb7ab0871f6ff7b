"""Feature alignment: every backend against the float64 reference, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from dafast.ops import (
    OPS,
    BackendError,
    feature_alignment_loss,
    feature_alignment_loss_reference,
    use_backend,
)
from tests.instruction_sets import (
    CPP,
    INSTRUCTION_SETS,
    instruction_set,
    needs_extension,
    threads,
)
from tests.ops import parity
from tests.pairwise import grid
from tests.tolerances import TOLERANCES

KERNELS = ["triton", CPP]
BACKENDS = ["reference", *KERNELS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


SHAPES = [(2, 37, 384), (1, 9, 768), (3, 5, 1024), (2, 3, 50), (1, 1, 1), (5, 1, 192)]
REDUCTIONS = ["all", "kept"]

pytestmark = pytest.mark.usefixtures("poisoned")


def _inputs(seed, shape, dtype=torch.float64, similar=0.7):
    """Features of which about half are within the margin, none so close that rounding decides."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
        noise = torch.rand((*shape[:2], 1), generator=generator, dtype=torch.float64) * similar * 2
        change = torch.randn(shape, generator=generator, dtype=torch.float64)
        student = (3 * (teacher + noise * change)).to(dtype)
        cosine = _cosine(student, teacher.to(dtype))
        if all(((cosine - margin).abs() > 1e-5).all() for margin in (0.7, 0.85)):
            return student, teacher.to(dtype)


def _run(backend, student, teacher, **options):
    def op(student):
        return feature_alignment_loss(student, teacher, **options)

    return parity.run(backend, op, [student])


def _cosine(student, teacher):
    return F.cosine_similarity(student.double(), teacher.double(), dim=-1)


@grid({"backend": BACKENDS, "shape": SHAPES, "dtype": DTYPES, "reduction": REDUCTIONS})
def test_matches_float64(backend, shape, dtype, reduction, seed, device):
    student, teacher = _inputs(seed, shape, dtype)
    expected, expected_grad = _run(
        "reference", student.double(), teacher.double(), reduction=reduction
    )
    loss, grad = _run(backend, student, teacher, reduction=reduction)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    # A gradient is a difference of terms up to 1 / |student|, which can cancel.
    terms = 1 / student.double().norm(dim=-1).min()
    parity.assert_within(grad, expected_grad, steps=4, scale=terms)


@pytest.mark.parametrize("backend", BACKENDS)
def test_formula(backend, seed, device):
    student, teacher = _inputs(seed, (2, 40, 64), torch.float32)
    cosine = _cosine(student, teacher)
    kept = cosine <= 0.85
    assert 0 < kept.sum() < kept.numel()
    loss, grad = _run(backend, student, teacher)
    assert loss.item() == pytest.approx((1 - cosine)[kept].sum().item() / 80, rel=1e-5)
    assert (grad[~kept] == 0).all() and (grad[kept] != 0).any(dim=-1).all()
    # A cosine does not change along its own vector.
    assert (grad * student).sum(-1).abs().max() < 1e-6
    loss, _ = _run(backend, student, teacher, reduction="kept", margin=0.7)
    assert loss.item() == pytest.approx((1 - cosine)[cosine <= 0.7].mean().item(), rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_kept_token_is_zero(backend, reduction, seed, device):
    _, teacher = _inputs(seed, (2, 7, 48), torch.float32)
    loss, grad = _run(backend, 2 * teacher, teacher, reduction=reduction)
    assert loss.item() == 0 and (grad == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend, shape, device):
    loss, grad = _run(backend, torch.zeros(shape), torch.zeros(shape))
    assert loss.item() == 0 and grad.shape == shape


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("margin", "expected"), [(0.85, 1.0), (0.0, 1.0), (-0.1, 0.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_channels_every_cosine_is_zero(backend, margin, expected, reduction, device):
    x = torch.zeros(2, 3, 0)
    loss, grad = _run(backend, x, x, margin=margin, reduction=reduction)
    assert loss.item() == expected and grad.shape == x.shape


def test_triton_tokens_of_an_image_further_apart_than_int32(seed, tmp_path):
    stride = 2**30 + 5
    # A sparse file of 8 GiB, in which an offset that wrapped around would be found too.
    memory = torch.from_file(
        str(tmp_path / "features"), shared=True, size=2**32 + 64, dtype=torch.float16
    )
    far = memory.as_strided((1, 3, 8), (0, stride, 1), 2**31)
    student, teacher = _inputs(seed, (1, 3, 8), torch.float16)
    far.copy_(student)
    expected = _run("triton", student, teacher)
    got = _run("triton", far, teacher)
    parity.assert_equal(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_features_are_finite(backend, seed, device):
    student, teacher = _inputs(seed, (1, 4, 32), torch.float32)
    student[0, 1] = 0
    teacher[0, 2] = 0
    loss, grad = _run(backend, student, teacher)
    expected, expected_grad = _run("reference", student.double(), teacher.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", [1e-9, 5e-9, 9e-9, 2e-8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_vanishing_features(backend, norm, seed, device):
    """Below 1e-8 the norm's value is clamped, and as in PyTorch not its derivative."""
    student, teacher = _inputs(seed, (1, 5, 64), torch.float32)
    student = norm * F.normalize(student, dim=-1)
    loss, grad = _run(backend, student, teacher, margin=2.0)
    expected, expected_grad = _run("reference", student.double(), teacher.double(), margin=2.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    atol = 1e-5 * expected_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows(backend, seed, device):
    student, teacher = _inputs(seed, (1, 6, 32), torch.float32)
    student[0, 3, 5] = float("nan")
    loss, grad = _run(backend, student, teacher)
    assert loss.isnan() and grad[0, 3].isnan().all() and grad[0, :3].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend, seed, device):
    student, teacher = _inputs(seed, (2, 12, 96), torch.float32)
    expected = _run(backend, student[:, 1:].contiguous(), teacher[:, 1:].contiguous())
    sliced = _run(backend, student[:, 1:], teacher[:, 1:])
    columns = student.transpose(1, 2).contiguous().transpose(1, 2)
    transposed = _run(backend, columns[:, 1:], teacher[:, 1:])
    broadcast = _run(backend, student[:1].expand(3, -1, -1), teacher[:1].expand(3, -1, -1))
    single = _run(backend, student[:1], teacher[:1])
    for got in (sliced, transposed):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(broadcast[0], single[0])


@pytest.mark.parametrize("backend", KERNELS)
def test_reads_the_view_without_class_token_in_place(backend, seed, monkeypatch, device):
    student, teacher = _inputs(seed, (2, 12, 96), torch.float32)
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda *_: pytest.fail("a copy was made"), raising=True
    )
    _run(backend, student[:, 1:], teacher[:, 1:])


@pytest.mark.slow
def test_triton_is_bit_equal_run_to_run(seed, device):
    student, teacher = _inputs(seed, (2, 300, 40), torch.float32)
    parity.assert_equal(*(_run("triton", student, teacher) for _ in range(2)))


@pytest.mark.parametrize("kept_only", [False, True])
@pytest.mark.parametrize("programs", [1, 2048, 2049, 5000])
def test_reduce_adds_up_more_programs_than_one_step_takes(programs, kept_only, seed, device):
    from dafast.kernels.feature_alignment_loss import (
        _REDUCE,
        _feature_alignment_loss_reduce_kernel,
    )

    generator = torch.Generator().manual_seed(seed)
    sums = torch.rand(programs, generator=generator)
    counts = torch.randint(1, 9, (programs,), generator=generator, dtype=torch.int32)
    loss, weight = torch.empty(()), torch.empty(())
    _feature_alignment_loss_reduce_kernel[(1,)](
        sums, counts, loss, weight, programs, 8 * programs, KEPT_ONLY=kept_only, BLOCK=_REDUCE
    )
    divisor = counts.sum().item() if kept_only else 8 * programs
    assert weight.item() == pytest.approx(1 / divisor, rel=1e-6)
    assert loss.item() == pytest.approx(sums.double().sum().item() / divisor, rel=1e-5)


@needs_extension
def test_cpp_is_bit_equal_for_any_number_of_threads(seed):
    student, teacher = _inputs(seed, (3, 700, 40), torch.float32)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(_run("cpp", student, teacher))
    for result in results[1:]:
        parity.assert_equal(result, results[0])


@needs_extension
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_cpp_on_every_instruction_set(name, seed):
    with instruction_set(name):
        for dtype in DTYPES:
            for shape in ((2, 40, 384), (1, 5, 50), (1, 3, 2500)):
                test_matches_float64("cpp", shape, dtype, "all", seed, "cpu")


@needs_extension
def test_cpp_serves_the_cpu_unasked():
    from dafast.ops import OPS

    x = torch.zeros(1, 2, 3)
    assert OPS["feature_alignment_loss"].select(x, x) == "cpp"
    assert OPS["feature_alignment_loss"].select(x.double(), x) == "reference"


@pytest.mark.parametrize("backend", BACKENDS)
def test_target_gets_no_gradient_and_the_incoming_one_counts(backend, seed, device):
    student, teacher = _inputs(seed, (2, 6, 32), torch.float32)
    _, once = _run(backend, student, teacher)
    student.requires_grad_(), teacher.requires_grad_()
    with use_backend(backend):
        (3 * feature_alignment_loss(student, teacher)).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, 3 * once)


def test_gradcheck(seed):
    student, teacher = _inputs(seed, (2, 5, 7))
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: feature_alignment_loss_reference(s, teacher), [student]
    )


@pytest.mark.parametrize("backend", KERNELS)
def test_only_the_loss_is_differentiable(backend, seed):
    """What the backward keeps gets no gradient, and autograd fills none with zeros for it."""
    from dafast.ops.feature_alignment_loss import _op

    student, teacher = _inputs(seed, (2, 6, 32), torch.float32)
    inputs = (student.requires_grad_(), teacher, 0.85, False, backend)
    assert OPS["feature_alignment_loss"].backends[backend].supports(*inputs[:2]) == ""
    for op in (_op, torch.ops.dafast.feature_alignment_loss):
        assert [x.requires_grad for x in op(*inputs)] == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_and_compile(backend, seed, monkeypatch):
    monkeypatch.undo()  # opcheck compares allocations of its own
    student, teacher = _inputs(seed, (2, 6, 32), torch.float32)
    student.requires_grad_()
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.dafast.feature_alignment_loss.default,
            (student, teacher, 0.85, False, backend),
        )
        torch._dynamo.reset()  # traced code keeps its backend
        compiled = torch.compile(feature_alignment_loss, backend="aot_eager", fullgraph=True)
        got = torch.autograd.grad(compiled(student, teacher), student)[0]
    torch.testing.assert_close(got, _run(backend, student, teacher)[1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {}, "one shape"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), {}, "one shape"),
        ((torch.zeros(1, 2, 3).int(), torch.zeros(1, 2, 3)), {}, "floating point"),
        ((torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)), {"reduction": "mean"}, "all, kept"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        feature_alignment_loss(*arguments, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_graph_capture_and_streams(dtype, seed, monkeypatch):
    monkeypatch.undo()
    student, teacher = (x.cuda() for x in _inputs(seed, (4, 1369, 384), dtype))
    expected, expected_grad = _run("reference", student.double(), teacher.double())
    # Plus half a step of the smallest float16: gradients of that many tokens are that small.
    bound = 8 * TOLERANCES[dtype].op * expected_grad.abs().max() + 2**-25
    streams = [torch.cuda.Stream() for _ in range(2)]
    for stream in streams:
        with torch.cuda.stream(stream):
            for _ in range(3):
                loss, grad = _run("triton", student, teacher)
        stream.synchronize()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert (grad.double() - expected_grad).abs().max() <= bound
    graph = torch.cuda.CUDAGraph()
    leaf = student.clone().requires_grad_()
    with use_backend("triton"), torch.cuda.graph(graph):
        captured = feature_alignment_loss(leaf, teacher)
        captured_grad = torch.autograd.grad(captured, leaf)[0]
    graph.replay()
    assert captured.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (captured_grad.double() - expected_grad).abs().max() <= bound


def test_triton_takes_rows_that_fit(device):
    wide = torch.zeros(2, 1, 8193)
    with use_backend("triton"):
        with pytest.raises(BackendError, match="takes up to 8192 channels, not 8193"):
            feature_alignment_loss(wide, wide)
        many_tokens = torch.ones(1, 8193, 2)
        assert OPS["feature_alignment_loss"].select(many_tokens, many_tokens) == "triton"
