"""`optimize(fp8=...)`: emulated on the CPU through the code that a GPU runs, also with graphs."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch

from dafast.models.cuda_graphs import GraphedForward
from dafast.models.fp8_forward import Fp8Forward
from dafast.ops import quantize_fp8
from tests.models.fake_graphs import FakeMachinery
from tests.tiny import tiny

CONFIG = tiny(num_layers=5, out_indices=(0, 1, 2, 4))  # a block that is no tap


def make(config=CONFIG):
    from tests.models.packed import make

    return make(config)


@pytest.fixture
def model(seed):
    return make()


def images(count=1):
    return torch.randn(count, 3, 28, 42)


@torch.no_grad()
def by_hand(model, x):
    """The network with its linear layers by their definition, without smoothing."""
    other = copy.deepcopy(model)
    for block in other.pretrained.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            linear.weight.copy_(quantize_fp8(linear.weight).dequantize())
            linear.register_forward_pre_hook(
                lambda module, args: quantize_fp8(args[0]).dequantize()
            )
    return other(x)


@torch.no_grad()
def test_emulation_is_the_network_with_rounded_operands(model, monkeypatch):
    from dafast.models import fp8_forward

    monkeypatch.setattr(fp8_forward, "smoothed_blocks", lambda m, _: list(m.pretrained.blocks))
    x = images(2)
    exact = model(x)
    expected = by_hand(model, x)
    got = model.optimize(fp8="emulate")(x)
    assert isinstance(model._optimized, Fp8Forward)
    lost = (expected - exact).abs().max()
    assert lost > 0
    # Sums in another order: where a value lies between two neighbours, one rounding differs.
    assert (got - expected).abs().max() <= 0.5 * lost


@torch.no_grad()
def test_close_to_the_modules_for_all_calls(model):
    x = images(2)
    exact = model(x)
    got = model.optimize(fp8="emulate")(x)
    assert 0 < (got - exact).abs().max() < 0.2 * exact.abs().max()
    several = model([x[0], x[1, :, :, :28]])
    torch.testing.assert_close(several[0], got[0], rtol=1e-2, atol=1e-2 * float(got.abs().max()))
    photo = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert not np.array_equal(model.infer(photo), model.optimize(fp8=False).infer(photo))
    assert model.optimize(fp8="emulate").optimize()._optimized.fp8 == "emulate", "it stays"


def test_gradients_and_training_use_the_modules(model):
    x = images()
    expected = model(x)
    model.optimize(fp8="emulate")
    assert torch.equal(model(x), expected) and model(x).requires_grad
    with torch.no_grad():
        before = model(x)
        kept = model._optimized
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(model(x), before)
        assert model._optimized is kept
        model.train().eval()
        assert torch.equal(model(x), before) and model._optimized is not kept


@torch.no_grad()
def test_changed_weights_are_quantised_again(model):
    x = images()
    model.optimize(fp8="emulate")
    before = model(x)
    kept = model._optimized
    assert torch.equal(model(x), before) and model._optimized is kept
    for p in model.parameters():
        p.mul_(1.1)
    after = model(x)
    assert model._optimized is not kept and not torch.allclose(before, after)
    assert torch.equal(after, copy.deepcopy(model).optimize(fp8="emulate")(x))


@pytest.mark.slow
def test_copies_start_without_and_nothing_keeps_a_model(seed):
    model = make()
    model.optimize(fp8="emulate")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._optimized is None
    gone = weakref.ref(model.pretrained.blocks[0].attn.qkv.weight)
    del model, twin
    gc.collect()
    assert gone() is None


def test_refusals_name_the_remedy(model, monkeypatch):
    with pytest.raises(RuntimeError, match=r"NVIDIA GPU, not 'cpu'; fp8='emulate'"):
        model.optimize(fp8=True)
    with pytest.raises(ValueError, match="'emulate', not 'yes'"):
        model.optimize(fp8="yes")
    monkeypatch.setattr("dafast.models.fp8_forward.why_no_fp8", lambda device: "")
    with pytest.raises(RuntimeError, match="load it with dtype='bfloat16'"):
        model.optimize(fp8=True)
    model.bfloat16().optimize(fp8=True)
    assert model._optimized.fp8 is True
    monkeypatch.undo()
    with torch.no_grad():  # as on a CPU to which the model was moved
        for p in model.parameters():
            p.mul_(1)
        model(images().bfloat16())
    assert not getattr(model._optimized, "fp8", False)  # None: optimize() refuses such a CPU


def test_replaced_parts_are_not_quantised(model, caplog):
    model.pretrained.blocks[0].mlp.act = torch.nn.ReLU()
    with caplog.at_level("INFO", "dafast"), torch.no_grad():
        expected = model(images())
        assert model.optimize(fp8="emulate")._optimized is None
    assert "not as built" in caplog.text and expected.isfinite().all()


@pytest.fixture
def made(monkeypatch):
    """The machineries of the models, on a CPU that captures."""
    made = []

    def new_machinery(device):
        made.append(FakeMachinery())
        return made[-1]

    monkeypatch.setattr("dafast.models.cuda_graphs.can_capture", lambda device: True)
    monkeypatch.setattr("dafast.models.cuda_graphs.new_machinery", new_machinery)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, tiny(bin_centers=tiny().bin_centers)])
@torch.no_grad()
def test_graphs_of_the_quantised_forward(config, made, seed):
    model = make(config)
    x = images()
    plain = copy.deepcopy(model).optimize(fp8="emulate", cuda_graphs=False)
    expected = plain(x)
    assert isinstance(plain._optimized, Fp8Forward) and not made
    model.optimize(fp8="emulate")
    for _ in range(3):
        assert torch.equal(model(x), expected)
    assert isinstance(model._optimized, GraphedForward)
    assert (made[0].captures, made[0].replays) == (1, 2)
    photo = np.zeros((20, 30, 3), np.uint8)
    for _ in range(3):
        np.testing.assert_array_equal(model.infer(photo), plain.infer(photo))
    for p in model.parameters():
        p.mul_(1.1)
    changed = copy.deepcopy(model).optimize(fp8="emulate", cuda_graphs=False)(x)
    assert torch.equal(model(x), changed) and len(made) == 2, "the graphs held old weights"
    kept = model._optimized
    model.train().eval()
    assert torch.equal(model(x), changed) and model._optimized is not kept
    assert model.optimize(fp8=False)._optimized.blocks is None
    assert torch.equal(model(x), copy.deepcopy(model)(x))


def resizes_positions(machine):
    """Whether a replay of each graph resizes the position embeddings."""
    names = [[func._schema.name for func, *_ in g.record.calls] for g in machine.graphs]
    return ["aten::upsample_bicubic2d" in each for each in names]


@pytest.mark.slow
@torch.no_grad()
def test_a_replay_takes_the_position_embeddings_of_its_size(made, seed):
    model = make()
    inputs = [images(), images(2)]

    def check(count):
        plain = copy.deepcopy(model).optimize(fp8="emulate", cuda_graphs=False)
        for x in inputs:
            model(x), model(x)
        assert len(made) == count and resizes_positions(made[-1]) == [False] * 2
        assert all(torch.equal(model(x), plain(x)) for x in inputs)

    model.optimize(fp8="emulate")
    check(1)
    model.load_state_dict(make().state_dict())
    check(2)
    model.train()
    model.pretrained.pos_embed.data.mul_(-2)
    model.eval()
    check(3)
    # Other graphs read the weights where they are, also after a change that PyTorch does not count.
    model.optimize(fp8=False)
    for x in inputs * 2:
        model(x)
    assert resizes_positions(made[-1]) == [True] * 2


@torch.no_grad()
def test_a_graph_owns_its_position_embeddings(made, seed):
    model, x = make().optimize(fp8="emulate"), images()
    model(x), model(x)
    (graph,) = model._optimized._graphs.values()
    ((size, kept),) = graph.positions.items()
    assert size == (2, 3)
    assert torch.equal(kept, model.pretrained.interpolate_pos_embed(2, 3))
    assert model.pretrained.interpolate_pos_embed(2, 3) is not kept, "for a graph only"
    gone = weakref.ref(kept)
    del graph, kept
    made[0].graphs.clear()
    model._optimized.release()
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_matches_the_emulation(seed):
    from dafast.ops import use_backend
    from dafast.ops.quantize_fp8 import why_no_fp8

    if why := why_no_fp8(torch.device("cuda")):
        pytest.skip(why)
    import dafast

    model = dafast.DepthAnything("vits").cuda().bfloat16().eval()
    x = torch.randn(2, 3, 140, 182, device="cuda").bfloat16()
    exact = copy.deepcopy(model).float()(x.float())
    model.optimize(fp8=True)
    for _ in range(3):
        got = model(x)
    with use_backend("reference"):
        emulated = model(x)
    lost = (emulated - exact).square().mean().sqrt()
    assert (got - exact).square().mean().sqrt() <= 2 * lost
