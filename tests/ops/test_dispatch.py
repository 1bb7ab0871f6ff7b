"""Choosing a backend."""

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dafast.ops import OPS, BackendError, _extension, flash_attention, use_backend
from dafast.ops._dispatch import Backend, Op
from tests.instruction_sets import needs_extension


@pytest.fixture
def op():
    """An op whose `sdpa` backend takes positive numbers only."""
    made = Op(
        "test_op",
        lambda x: ("reference", x),
        {"sdpa": Backend(lambda x: ("sdpa", x), lambda x: "" if x > 0 else "needs a number > 0")},
    )
    yield made
    del OPS["test_op"]


def test_prefers_first_backend_and_falls_through(op, caplog):
    with caplog.at_level(logging.INFO, logger="dafast"):
        assert op(1) == ("sdpa", 1)
        assert op(-1) == ("reference", -1)
        assert op(-2) == ("reference", -2)
    reasons = [r for r in caplog.messages if "needs a number > 0" in r]
    assert len(reasons) == 1, "a reason is logged once"


def test_forced_backend_serves_or_raises(op):
    with use_backend("reference"):
        assert op(1) == ("reference", 1)
    with use_backend("sdpa"), pytest.raises(BackendError, match="needs a number > 0"):
        op(-1)
    assert op(1) == ("sdpa", 1), "the choice ends with the block"


def test_op_without_the_forced_backend_keeps_its_choice(op):
    with use_backend("triton"):
        assert op(1) == ("sdpa", 1)


def test_forcing_does_not_leak_into_other_threads(op):
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(op(1)))
        thread.start()
        thread.join()
    assert seen == [("sdpa", 1)]


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="no backend 'tritn'; there are: reference"):
        with use_backend("tritn"):
            pass


def test_compiles_to_one_graph_with_the_backend_of_the_trace(seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 9, 2, 64, generator=generator)
    seen = []

    def record(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    for backend, fused in (("reference", False), ("sdpa", True)):
        torch._dynamo.reset()
        with use_backend(backend):
            compiled = torch.compile(flash_attention, backend=record, fullgraph=True)
            torch.testing.assert_close(compiled(q, q, q), flash_attention(q, q, q))
        assert any("scaled_dot_product" in name for name in seen[-1]) == fused


def test_older_extension_lacks_an_op(monkeypatch):
    """An extension that was not built again costs speed, not function."""
    import types

    from dafast.cli.doctor import collect
    from dafast.ops import pad

    real = _extension.load()
    old = types.SimpleNamespace(
        ops=["resize_bicubic"], cuda=False, compiler="gcc", torch_version="2.13.0"
    )
    monkeypatch.setattr(_extension, "_load", lambda: (old, ""))
    assert "older version, without pad" in _extension.why_not("cpp", "pad")
    assert "without CUDA" in _extension.why_not("cuda", "pad")
    with use_backend("cpp"), pytest.raises(BackendError, match="older version, without pad"):
        pad(torch.zeros(1, 1, 2, 2), (1, 1, 1, 1))
    assert pad(torch.zeros(1, 1, 2, 2), (1, 1, 1, 1)).shape == (1, 1, 4, 4)
    costs = {part["part"]: part for part in collect()["missing"]}
    assert "pad" in costs["parts of the C++ extension"]["cost"]
    monkeypatch.undo()
    assert _extension.load() is real


@needs_extension
@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ImportError("undefined symbol: f"), "ImportError: undefined symbol: f"),
        (AttributeError("no\nTensor"), "AttributeError: no Tensor"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyError(), "KeyError:"),
    ],
)
def test_an_extension_with_a_failing_import_is_missing(error, named, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(_extension.importlib, "import_module", fail)
    module, reason = _extension._load.__wrapped__()
    assert module is None and f"installed, but its import fails ({named}" in reason


@pytest.mark.slow
def test_unknown_instruction_sets_and_failing_imports_are_named(tmp_path):
    """The ops take another backend, and doctor names the reason."""
    (tmp_path / "_C.py").write_text("raise AttributeError('no Tensor')")
    code = f"""if True:
        import dafast
        from dafast.ops import _extension
        print(_extension._load.__wrapped__()[1])
        dafast.__path__.insert(0, {str(tmp_path)!r})
        import torch
        from dafast.cli.doctor import collect
        from dafast.ops import resize_bilinear
        print(resize_bilinear(torch.ones(1, 1, 4, 4), (8, 8)).shape)
        print(next(part["why"] for part in collect()["missing"] if part["part"] == "C++ extension"))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "DAFAST_CPU_CAPABILITY": "sse9"},
    )  # fmt: skip
    if _extension.load() is not None:
        assert (
            '"sse9"; use portable, avx2, avx_vnni, avx512, avx512_bf16 or avx512_amx' in done.stdout
        )
    assert "rebuild" not in done.stdout.splitlines()[0]
    assert "torch.Size([1, 1, 8, 8])" in done.stdout
    assert "its import fails (AttributeError: no Tensor)" in done.stdout


def test_fake_tensors_in_a_list_reach_the_custom_op():
    """Also outside of their mode: a kernel would read memory that they do not have."""
    mode = FakeTensorMode()
    images = [mode.from_tensor(torch.zeros(3, *size)) for size in ((9, 9), (20, 30))]
    op = sys.modules["dafast.ops.preprocess"]._op
    for batch in (images, images[1:]):
        out = op(batch, [28, 42, 0, 0] * len(batch), [28, 42], [0.5] * 3, [0.5] * 3,
                 False, True, 0, torch.float32, False)  # fmt: skip
        assert isinstance(out, FakeTensor) and out.shape == (len(batch), 3, 28, 42)
