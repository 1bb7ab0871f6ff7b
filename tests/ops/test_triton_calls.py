"""What a launch costs the host: Python calls, which no machine's load changes, and compilations."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the kernels are launched with Triton, which is missing")

# The most calls of functions of dafast, Triton and torch.cuda in a call of the op, and with its
# backward pass (0: none). Behind them what it was when Triton looked every launch up and every op
# asked its backends at every call (those in fp8 are younger).
BOUNDS = {
    "add_layer_norm": (14, 30),  # 56, 113
    "add_layer_norm_fp8": (15, 0),
    "affine_invariant_loss": (40, 70),  # 114, 170
    "bias_gelu": (12, 27),  # 45, 101
    "bias_relu_add": (17, 38),
    "conv_transpose": (16, 24),
    "decoder_tail": (20, 0),  # 57
    "feature_alignment_loss": (17, 31),  # 59, 100
    "quantize_fp8": (12, 0),
    "flash_attention": (27, 73),  # 59, 155
    "flash_attention_qkvpacked": (25, 66),  # 56, 148
    "flash_attention_varlen": (30, 76),  # 60, 156
}


@pytest.fixture(scope="module")
def counted():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.triton_calls"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_launch_makes_few_python_calls(counted):
    calls, _ = counted
    assert calls.keys() == BOUNDS.keys()
    more = {op: made for op, made in calls.items() if any(map(int.__gt__, made, BOUNDS[op]))}
    assert not more, f"more calls than { ({op: BOUNDS[op] for op in more}) }"


@pytest.mark.slow
def test_no_kernel_is_compiled_again_for_other_sizes(counted):
    _, compilations = counted
    assert {name: n for name, n in compilations.items() if n != 1} == {}
    assert {name.removesuffix("_kernel") for name in compilations} == {
        "_add_layer_norm_fwd", "_add_layer_norm_bwd", "_bias_gelu_fwd", "_bias_gelu_bwd",
        "_feature_alignment_loss_fwd", "_feature_alignment_loss_reduce",
        "_feature_alignment_loss_bwd", "_sum_over_programs",
    }  # fmt: skip
