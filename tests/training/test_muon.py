"""Muon in float32 against torch's, which computes in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

from dafast.training import optimizers
from dafast.training.config import OptimSection
from dafast.training.muon import Muon, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_orthogonalize_keeps_singular_vectors(shape, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    got = orthogonalize(matrix, COEFFICIENTS, 5, 1e-7)
    torch.testing.assert_close(got, u @ torch.diag(s) @ v)
    single = orthogonalize(matrix.float(), COEFFICIENTS, 5, 1e-7)
    torch.testing.assert_close(single.double(), got, rtol=0, atol=1e-4)


def test_steps_are_those_of_torch(fixed_seed):
    torch.manual_seed(fixed_seed)
    ours = [torch.randn(s, requires_grad=True) for s in ((12, 12), (6, 30), (30, 6))]
    theirs = copy.deepcopy(ours)
    groups = [dict(params=p, lr=0.1, weight_decay=0.1) for p in (ours, theirs)]
    mine, other = Muon(groups[:1]), torch.optim.Muon(groups[1:], adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.03)  # bfloat16 has 8 bits
        assert (a - b).abs().max() > 1e-5, "torch no longer computes in bfloat16"
    kept, expected = mine.state_dict()["state"], other.state_dict()["state"]
    assert kept.keys() == expected.keys()
    for index in kept:
        torch.testing.assert_close(kept[index], expected[index])


@pytest.mark.parametrize("native", [False, True])
def test_the_cpu_decides(native, monkeypatch):
    monkeypatch.setattr(optimizers, "device_has_bfloat16", lambda _: native)
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleDict({"0": torch.nn.Linear(4, 4)})})
    wrapped = torch.nn.ModuleDict({"pretrained": model})
    built = optimizers.build_optimizer(wrapped, OptimSection(muon=True))
    assert [type(o) for o in built.optimizers] == [
        torch.optim.AdamW, torch.optim.Muon if native else Muon
    ]  # fmt: skip
