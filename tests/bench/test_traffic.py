"""The bytes that the benchmark says the kernels move, against what they must move."""

from __future__ import annotations

import pytest

from bench import traffic

pytest.importorskip("triton", reason="bytes are counted in Triton's interpreter")

PIXELS, TOKENS, CHANNELS = 2 * 30 * 30, 2 * 9, 48


@pytest.fixture(scope="module")
def counts():
    labels = [
        "affine_invariant_loss|2x30x30, 20% masked|float32",
        "feature_alignment_loss|2x9x48|bfloat16",
    ]
    with traffic.Counter("sm_90") as counter:
        return {label: counter.count(label) for label in labels}


@pytest.mark.slow
def test_affine_invariant_loss(counts):
    *forward, backward = counts["affine_invariant_loss|2x30x30, 20% masked|float32"]
    inputs = PIXELS * (4 + 4 + 1)
    assert len(forward) == 5
    assert forward[0]["read"] == inputs
    # Every later pass over the pixels adds at most a look at two histograms per map: of 2048 bins,
    # and twice at one of 1024.
    for launch in forward[1:4]:
        assert inputs < launch["read"] <= inputs + 2 * (2 * 2048 * 4 + 1024)
    assert sum(launch["written"] for launch in forward) < inputs
    assert inputs < backward["read"] <= inputs + 1024
    assert backward["written"] == PIXELS * 4


@pytest.mark.slow
def test_feature_alignment_loss(counts):
    first, reduce, backward = counts["feature_alignment_loss|2x9x48|bfloat16"]
    maps = 2 * TOKENS * CHANNELS * 2
    assert first["read"] == maps
    assert reduce["read"] < 1024
    assert backward["read"] <= maps + TOKENS * 12 + 1024
    assert backward["written"] == TOKENS * CHANNELS * 2
