"""What every op with a Triton kernel has in common."""

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from bench.registry import SMALL_CASES
from dafast.ops import OPS, BackendError, available_backends, use_backend

# The first case of each op.
CASES = {c.op: c for c in reversed(SMALL_CASES) if "triton" in available_backends()[c.op]}
DIFFERENTIABLE = [op for op, case in CASES.items() if case.differentiable]
PYTORCH_BACKWARD = {"conv_transpose"}  # which has a second derivative, too


def _inputs(op, seed):
    return list(CASES[op].make(seed, torch.float32, torch.device("cpu")))


def _total(op, arguments):
    outputs = CASES[op].call(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(x.float().square().sum() for x in outputs)


@pytest.mark.parametrize("op", CASES)
def test_every_launch_is_made_on_the_device_of_its_tensors(op, seed, monkeypatch):
    """Triton launches on the current device, which need not be that of the tensors."""
    from triton.runtime.interpreter import GridExecutor

    entered = []

    @contextlib.contextmanager
    def device_of(tensor):
        entered.append(tensor.device)
        yield
        entered.pop()

    launch, launches = GridExecutor.__call__, []

    def checked(self, *args, **kwargs):
        launches.append(list(entered))
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr("dafast.kernels.runtime._several_gpus", lambda: True)
    monkeypatch.setattr(GridExecutor, "__call__", checked)
    arguments = _inputs(op, seed)
    with use_backend("triton"):
        for i in CASES[op].differentiable:
            arguments[i].requires_grad_()
        with torch.set_grad_enabled(bool(CASES[op].differentiable)):
            total = _total(op, arguments)
        forward = len(launches)
        if total.requires_grad and op not in PYTORCH_BACKWARD:
            total.backward()
            assert len(launches) > forward
    assert forward and all(inside == [torch.device("cpu")] for inside in launches)


@pytest.mark.gpu
@pytest.mark.parametrize("op", CASES)
def test_gpu_tensors_on_another_device_than_the_current_one(op, seed):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    values = [
        x.to("cuda:1") if isinstance(x, torch.Tensor) else x for x in _inputs(op, seed)
    ]  # fmt: skip
    assert torch.cuda.current_device() == 0
    with torch.no_grad():
        with use_backend("triton"):
            total = _total(op, values)
        with use_backend("reference"):
            torch.testing.assert_close(total, _total(op, values), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", sorted(set(DIFFERENTIABLE) - PYTORCH_BACKWARD))
def test_a_second_derivative_fails_with_a_remedy(op, seed):
    arguments = _inputs(op, seed)
    leaf = arguments[0].detach().requires_grad_()
    with use_backend("triton"):
        total = _total(op, [leaf, *arguments[1:]])
    (grad,) = torch.autograd.grad(total, leaf, create_graph=True)
    name = op.removesuffix("_varlen")  # one op with dense attention
    with pytest.raises(NotImplementedError, match=rf"ops\.{name}: .*use_backend\('reference'\)"):
        grad.sum().backward()


@pytest.mark.parametrize("op", sorted(set(DIFFERENTIABLE) - {"bias_relu_add"}))  # keeps no input
def test_inputs_changed_before_the_backward_pass_are_refused(op, seed):
    arguments = _inputs(op, seed)
    leaves = [arguments[i].requires_grad_() for i in CASES[op].differentiable]
    with use_backend("triton"):
        total = _total(op, arguments)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_transforms_that_custom_ops_get_wrong_are_refused(op, seed):
    first, *rest = _inputs(op, seed)

    def total(x):
        return _total(op, [x, *rest])

    with use_backend("triton"):
        with pytest.raises(BackendError, match="forward-mode"):
            torch.func.grad(total)(first)
        with pytest.raises(BackendError, match="forward-mode"):
            torch.func.jvp(total, (first,), (first,))
        with pytest.raises(BackendError, match="forward-mode"):
            torch.func.grad(lambda x: torch.vmap(total)(x).sum())(first[None])
        with forward_ad.dual_level(), pytest.raises(BackendError, match="forward-mode"):
            total(forward_ad.make_dual(first, first))
    # Unasked, another backend serves.
    got = torch.func.grad(total)(first)
    leaf = first.detach().requires_grad_()
    with use_backend("triton"):
        (expected,) = torch.autograd.grad(total(leaf), leaf)
    # A sequence of one token has no gradient in q and k; what is left there is rounding.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "kernel"),
    [
        ("add_layer_norm", "_add_layer_norm_fwd_kernel"),
        ("feature_alignment_loss", "_feature_alignment_loss_fwd_kernel"),
        ("affine_invariant_loss", "_affine_invariant_loss_l1_kernel"),
        ("affine_invariant_loss", "_affine_invariant_loss_bwd_kernel"),
    ],
)
def test_compiled_without_contraction(op, kernel, seed, monkeypatch):
    """Their pages say why. Interpreted nothing is contracted, so this looks at the option."""
    from triton.runtime.interpreter import GridExecutor

    launch, fusion = GridExecutor.__call__, {}

    def noted(self, *args, **kwargs):
        fusion.setdefault(self.fn.__name__, []).append(kwargs["enable_fp_fusion"])
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    arguments = _inputs(op, seed)
    arguments[0].requires_grad_()
    with use_backend("triton"):
        _total(op, arguments).backward()
    assert fusion[kernel] == [False]


@pytest.mark.parametrize("programs", [1, 128, 129, 300])
def test_sum_over_programs(programs, seed, device):
    """More of them than one step of the kernel takes, as at the models' sizes."""
    from dafast.kernels.runtime import sum_over_programs

    partial = torch.randn(programs, 35, generator=torch.Generator().manual_seed(seed))
    got = sum_over_programs(partial)
    torch.testing.assert_close(got.double(), partial.double().sum(0), rtol=0, atol=1e-4)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Triton serves unasked."""
    from dafast.ops import _triton

    monkeypatch.setattr(_triton, "_cpu_reason", lambda: "")
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)


@pytest.mark.parametrize("op", ["flash_attention", "flash_attention_qkvpacked"])
def test_attention_in_full_float32_is_left_to_pytorch(op, tf32, seed, as_on_a_gpu):
    """There are no tensor cores for it; in TF32, as in 16 bits, the kernels serve unasked."""
    arguments = [*_inputs(op, seed), None]
    with torch.no_grad():
        assert OPS[op].select(*arguments) == "triton"
        torch.set_float32_matmul_precision("highest")
        assert OPS[op].select(*arguments) != "triton"
        with use_backend("triton"):
            assert OPS[op].select(*arguments) == "triton"
        halves = [x.half() if isinstance(x, torch.Tensor) else x for x in arguments]
        assert OPS[op].select(*halves) == "triton"


def test_the_tail_in_float32_is_left_to_pytorch(seed, as_on_a_gpu):
    arguments = _inputs("decoder_tail", seed)
    halves = [x.half() if isinstance(x, torch.Tensor) else x for x in arguments]
    with torch.no_grad():
        assert OPS["decoder_tail"].select(*halves) == "triton"
        assert OPS["decoder_tail"].select(*arguments) != "triton"
        with use_backend("triton"):
            assert OPS["decoder_tail"].select(*arguments) == "triton"


def test_any_way_of_setting_the_precision_of_products_is_read(seed, monkeypatch):
    """PyTorch's function for it raises where a newer setting has been used."""
    from dafast.kernels.runtime import float32_precision

    arguments = [*_inputs("flash_attention", seed), None]
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        OPS["flash_attention"].select(*arguments)
        assert float32_precision() == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        OPS["flash_attention"].select(*arguments)
        assert float32_precision() == "tf32"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = (
            before
        )


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.slow
def test_batched_gradients_get_the_custom_op(op, seed):
    """Which has a rule for them; calls go around it where nothing looks at them."""
    first, *rest = _inputs(op, seed)
    leaf = first.requires_grad_()
    with use_backend("triton"):
        total = _total(op, [leaf, *rest])
    vectors = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    got = torch.autograd.grad(total, leaf, vectors, is_grads_batched=True, retain_graph=True)[0]
    for vector, value in zip(vectors, got, strict=True):
        torch.testing.assert_close(value, torch.autograd.grad(total, leaf, vector,
                                                              retain_graph=True)[0])  # fmt: skip
