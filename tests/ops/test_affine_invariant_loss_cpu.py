"""Affine-invariant loss in C++: instruction sets, threads, and values that share bins."""

import pytest
import torch

from dafast.ops import OPS
from tests.instruction_sets import INSTRUCTION_SETS, instruction_set, needs_extension, threads
from tests.ops import parity
from tests.ops.test_affine_invariant_loss import DTYPES, _check, _inputs, _regions, _run


@needs_extension
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_cpp_on_every_instruction_set(name, seed, poisoned):
    prediction, target, mask, generator = _inputs(seed, (2, 51, 83))
    regions = _regions(mask, generator)
    with instruction_set(name):
        for dtype in DTYPES:
            for masks in ((), (mask,), (None, regions), (mask, regions)):
                _check("cpp", (prediction - 0.3).to(dtype), target.float(), *masks)


@needs_extension
@pytest.mark.parametrize("kind", ["smooth", "one bin", "half equal"])
def test_cpp_finds_the_median_of_any_values(kind, seed, poisoned):
    """Values that meet in few bins of the histograms, or whose last digits decide."""
    prediction, target, mask, _ = _inputs(seed, (2, 64, 130))
    if kind == "smooth":
        prediction = prediction.cumsum(-1) / 50 + torch.linspace(0, 1, 64)[:, None]
    elif kind == "one bin":
        prediction = 1 + prediction * 2**-12
    else:
        prediction[mask.cumsum(-1) % 2 == 0] = 0.25
    _check("cpp", prediction.float(), target.float(), mask)


@needs_extension
def test_cpp_is_bit_equal_for_any_number_of_threads(seed, poisoned):
    prediction, target, mask, generator = _inputs(seed, (3, 210, 333))
    inputs = (prediction.float(), target.float(), mask, _regions(mask, generator))
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(_run("cpp", *inputs))
    for result in results[1:]:
        parity.assert_equal(result, results[0])


@needs_extension
def test_cpp_serves_the_cpu_unasked():
    x = torch.zeros(1, 2, 3)
    assert OPS["affine_invariant_loss"].select(x, x) == "cpp"
    assert OPS["affine_invariant_loss"].select(x.double(), x) == "reference"
