"""Packed weights follow the model: every change of it shows in the next call."""

import copy
import dataclasses

import pytest
import torch

from tests.models.packed import SMALL, close, make, ready


@pytest.mark.slow
def test_twice_is_once_and_changed_weights_are_packed_again(seed):
    model = make(SMALL)
    ready(model)
    x = torch.randn(1, 3, 56, 56)
    first = model.optimize()._optimized
    assert model.optimize()._optimized is first
    with torch.no_grad():
        before = model(x)
        assert model._optimized is first
        for p in model.parameters():
            p.mul_(1.1)
        after = model(x)
        assert model._optimized is not first
        close(after, copy.deepcopy(model)(x), torch.float32)
        assert not torch.allclose(before, after)
        model.load_state_dict(make(SMALL).state_dict())
        close(model(x), copy.deepcopy(model)(x), torch.float32)
        model.to(torch.float64)
        assert model(x.double()).dtype == torch.float64


@torch.no_grad()
def _write_data(model, x):
    for p in model.parameters():
        p.data.mul_(1.1)


@torch.no_grad()
def _replace_twice(model, x):
    """The second may lie where the packed ones were."""
    for _ in range(2):
        for p in model.parameters():
            p.data = p.data * 1.1


def _fused_step(model, x):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model(x).sum().backward()
    optimizer.step()


def _other_rule(model, x):
    model.pretrained.position_embedding = "transformers"


def _one_channel(model, x):
    """A single row of one layer, chosen at random."""
    weight = model.pretrained.blocks[0].mlp.fc1.weight
    weight.data[torch.randint(len(weight), ())] += 1


def _one_value_by_numpy(model, x):
    bias = model.depth_head.scratch.output_conv2[2].bias
    bias.detach().numpy()[0] += 1


def _other_order(model, x):
    """The sum of all values stays."""
    gamma = model.pretrained.blocks[0].ls1.gamma
    gamma.data.copy_(gamma.data.flip(0))


def _exchanged_rows(model, x):
    """Two outputs of one layer change places."""
    weight = model.pretrained.blocks[0].mlp.fc1.weight.data
    first, second = torch.randperm(len(weight))[:2].tolist()
    weight[[first, second]] = weight[[second, first]]


def _negated_column(model, x):
    """Changes of the highest bits only, whose sum over an even number of rows is 0."""
    weight = model.pretrained.blocks[0].mlp.fc1.weight.data
    weight[:, 1 + 2 * int(torch.randint(weight.shape[1] // 2, ()))] *= -1


def _other_blocks(model, x):
    """A configuration is no setting of a module, but says which blocks the decoder reads."""
    model.config = dataclasses.replace(model.config, out_indices=(0, 1, 2, 3))


def _with_gaps(model, x):
    """A weight whose memory is not one block."""
    fc1 = model.pretrained.blocks[0].mlp.fc1
    fc1.weight.data = torch.cat([fc1.weight.data] * 2, dim=1)[:, : fc1.in_features]
    with torch.no_grad():
        model(x)
    fc1.weight.data[3] += 1


def _max_depth(model, x):
    model.depth_head.max_depth = 20.0


def _eps(model, x):
    model.pretrained.norm.eps = 0.1


def _first_eps(model, x):
    model.pretrained.blocks[1].norm1.eps = 0.1


def _gelu(model, x):
    model.pretrained.blocks[0].mlp.act.approximate = "tanh"
    model.pretrained.blocks[0].mlp.fc1.weight.data *= 20  # where the two kinds differ


def _heads(model, x):
    model.pretrained.blocks[0].attn.num_heads = 4


def _dilation(model, x):
    conv = model.depth_head.scratch.layer1_rn
    conv.padding = conv.dilation = (2, 2)


CHANGES = [
    _write_data, _replace_twice, _fused_step, _other_rule, _one_channel, _one_value_by_numpy,
    _other_order, _exchanged_rows, _negated_column, _other_blocks, _with_gaps, _max_depth, _eps,
    _first_eps, _gelu, _heads, _dilation,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_no_version_counts(change, seed):
    model = make(SMALL)
    ready(model)
    x = torch.randn(1, 3, 56, 70)  # a grid that is not the table's: the rules for it differ
    with torch.no_grad():
        before = model.optimize()(x)
    change(model, x)
    with torch.no_grad():
        after = model(x)
        close(after, copy.deepcopy(model)(x), torch.float32)
    assert not torch.allclose(before, after)
