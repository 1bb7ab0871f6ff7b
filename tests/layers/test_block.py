"""A single block, a block that computes the next norm too, and both on Triton's kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dafast.layers import Block, LayerNorm
from dafast.ops import use_backend
from tests.tolerances import TOLERANCES

BACKENDS = ["reference", "triton"]


def _block(seed, dim=64):
    """A block whose norms and factors are not 0 or 1, tokens, and a norm that follows."""
    torch.manual_seed(seed)
    block, norm = Block(dim, 2), LayerNorm(dim, feeds_product=True)
    with torch.no_grad():
        for parameter in (*block.parameters(), *norm.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block, norm, torch.randn(2, 5, dim)


def _plain(block, x):
    """The block as the paper has it, one operation after the other."""
    x = x + block.attn(block.norm1(x)) * block.ls1.gamma
    y = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return x + y * block.ls2.gamma


def _gradients(outputs, leaves):
    return torch.autograd.grad(sum(o.float().square().mean() for o in outputs), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_and_with_the_next_norm(backend, seed):
    block, norm, x = _block(seed)
    leaves = [x.requires_grad_(), *block.parameters(), *norm.parameters()]
    with use_backend("reference"):
        tokens = _plain(block, x)
        expected = [tokens, F.layer_norm(tokens, (64,), norm.weight, norm.bias, 1e-6)]
        grads = _gradients(expected, leaves)
    with use_backend(backend):
        alone = block(x)
        outputs = block(x, normed=block.norm1(x), next_norm=norm)
        got = [alone, *outputs, *_gradients(outputs, leaves)]
    for value, wanted in zip(got, [tokens, *expected, *grads], strict=True):
        assert (value - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast(backend, fixed_seed):
    """The stream stays float32; a norm comes in the dtype of the product that reads it."""
    block, norm, x = _block(fixed_seed)
    with use_backend("reference"):
        tokens = _plain(block, x)
    with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        s, n = block(x, next_norm=norm)
        _, final = block(x, next_norm=LayerNorm(64))
    assert s.dtype == final.dtype == torch.float32 and n.dtype == torch.bfloat16
    bound = TOLERANCES[torch.bfloat16].model
    assert (s - tokens).abs().max() <= bound * tokens.abs().max()
    exact = F.layer_norm(s.double(), (64,), norm.weight.double(), norm.bias.double(), 1e-6)
    # Twice: the interpreter cuts bfloat16 off where GPUs round.
    assert (n - exact).abs().max() <= 2 * TOLERANCES[torch.bfloat16].op * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mlp_is_rounded_no_worse_than_by_a_linear_layer(backend, fixed_seed):
    """A large bias that nearly cancels the product: rounded without it, digits would be lost."""
    block, _, x = _block(fixed_seed)
    mlp, x = block.mlp.bfloat16(), x.bfloat16()
    with torch.no_grad():
        mlp.fc1.bias.fill_(-50.0)
        mlp.fc1.weight.copy_(mlp.fc1.weight * 0.01)
        mlp.fc1.weight[:, 0] = 50.0
        x[..., 0] = 1.0
        mlp.fc2 = nn.Identity()
        with use_backend(backend):
            got = mlp(x)
        exact = F.gelu(F.linear(x.double(), mlp.fc1.weight.double(), mlp.fc1.bias.double()))
        usual = F.gelu(mlp.fc1(x))
    error, theirs = ((y.double() - exact).abs().max() for y in (got, usual))
    assert error <= 2 * theirs + TOLERANCES[torch.bfloat16].op * exact.abs().max()
    rounded = F.gelu(F.linear(x, mlp.fc1.weight).double() + mlp.fc1.bias.double())
    assert (rounded - exact).abs().max() > 4 * error, "the case shows no difference"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend, seed):
    block, norm, x = _block(seed)
    leaves = [*block.parameters(), *norm.parameters()]
    torch.compiler.reset()  # what was traced for one backend would serve the other's block too
    with use_backend(backend):
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        outputs, expected = compiled(x, next_norm=norm), block(x, next_norm=norm)
        grads = _gradients(outputs, leaves), _gradients(expected, leaves)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(*grads)
