"""`DepthAnything.optimize` on a GPU: right in every case, and captured when it should be.

A fake captures and replays on the CPU (`tests/models/fake_graphs.py`); the real graphs are in
`tests/models/test_cuda_machinery.py`.
"""

import concurrent.futures
import copy
import dataclasses
import logging
import pickle

import numpy as np
import pytest
import torch
import torch.utils.flop_counter

from dafast.models.cuda_graphs import MAX_GRAPHS, GraphedForward
from dafast.models.snapshot import Structure
from dafast.ops import use_backend
from tests.models.fake_graphs import (
    FIVE,
    images,
    in_place,
    make,
    modules,
    predict_batch,
    replaced_data,
)
from tests.tiny import TINY, tiny

ZOE = dataclasses.replace(TINY, max_depth=10.0, bin_centers="softplus")
WITH_SKY = tiny(output="exp", kind="depth", sky_head=True)


@pytest.fixture
def model(made, seed):
    return make(FIVE).optimize()


@torch.no_grad()
def test_a_size_is_captured_when_it_is_seen_again(model, made):
    small, large = images(), images(2, 42, 28)
    counts = []
    for x in (small, large, small, small, large, small):
        assert torch.equal(model(x), modules(model, x))
        counts.append((made[0].captures, made[0].replays))
    assert counts == [(0, 0), (0, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    assert len(made) == 1


@torch.no_grad()
def test_results_are_the_callers_own(model, made):
    first, second = images(), images()
    model(first)
    kept = [model(first), model(second)]
    values = [x.clone() for x in kept]
    first.zero_()  # the input is the caller's, too
    model(images(2)), model(images(2))  # another graph, which shares the memory
    kept[0].add_(0)
    assert all(map(torch.equal, kept, values))
    assert not torch.equal(*values)


@torch.no_grad()
def test_the_key_is_all_that_a_graph_depends_on(model, made):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    x = images(2)
    last = x.contiguous(memory_format=torch.channels_last)
    for given in (x, last, x[:1], x):  # one each; the batch is of the key, and the layout
        model(given)
    assert made[0].captures == 1
    model(last)
    assert made[0].captures == 2
    try:
        torch.set_float32_matmul_precision("high")
        model(x)
        assert made[0].captures == 2
        with use_backend("reference"):
            model(x), model(x)
        assert made[0].captures == 3
        torch.set_float32_matmul_precision("highest")
        model(x)
        assert made[0].captures == 3 and made[0].replays == 4
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
@torch.no_grad()
def test_the_graph_of_the_oldest_use_makes_room(model, made):
    sizes = [images(1, 14, 14 * (1 + i)) for i in range(MAX_GRAPHS + 1)]
    for x in sizes:
        model(x), model(x)
        model(sizes[0])  # the latest of all each time
    assert made[0].captures == MAX_GRAPHS + 1
    model(sizes[0]), model(sizes[-1])
    assert made[0].captures == MAX_GRAPHS + 1
    assert torch.equal(model(sizes[1]), modules(model, sizes[1]))
    assert made[0].captures == MAX_GRAPHS + 2
    assert len(model._optimized._graphs) == MAX_GRAPHS


def by_data(model):
    for p in model.parameters():
        p.data.mul_(1.5)


def fused_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        model(images()).sum().backward()
    optimizer.step()


def loaded(model):
    model.load_state_dict(make(FIVE).state_dict())


def positions(model):
    model.pretrained.pos_embed.data.mul_(-2)


@pytest.mark.parametrize("change", [in_place, by_data, fused_step, loaded, positions])
@torch.no_grad()
def test_weights_changed_in_place_need_no_capture(change, model, made):
    x = images()
    before = [model(x), model(x)][0]
    change(model)
    after = model(x)
    assert torch.equal(after, modules(model, x)) and not torch.allclose(before, after)
    assert [m.captures for m in made] == [1] and made[0].replays == 2


def replaced_parameter(model):
    fc1 = model.pretrained.blocks[0].mlp.fc1
    fc1.weight = torch.nn.Parameter(2 * fc1.weight.data)


def assigned(model):
    model.load_state_dict(make(FIVE).state_dict(), assign=True)


def replaced_module(model):
    other = torch.nn.Linear(32, 32)
    model.pretrained.blocks[1].attn.proj = other


def other_eps(model):
    model.pretrained.norm.eps = 0.5


def other_config(model):
    model.config = dataclasses.replace(model.config, out_indices=(0, 1, 2, 4))


def transposed(model):
    weight = model.pretrained.blocks[0].attn.proj.weight
    weight.data = weight.data.t()


CHANGES = [
    *(replaced_data, replaced_parameter, assigned, replaced_module),
    *(other_eps, other_config, transposed),
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_other_memory_modules_and_settings_are_captured_again(change, model, made):
    x = images()
    before = [model(x), model(x)][0]
    change(model)
    for _ in range(3):
        after = model(x)
        assert torch.equal(after, modules(model, x))
    assert not torch.allclose(before, after)
    assert [m.captures for m in made] == [1, 1] and made[1].replays == 2
    # The old graph would read memory that may be free by now; otherwise its result is discarded.
    moved = change in (replaced_data, replaced_parameter, assigned)
    assert made[0].replays == (1 if moved else 2)


@torch.no_grad()
def test_the_host_checks_the_model_while_the_graph_runs(model, made, monkeypatch):
    x, replays = images(), []
    model(x), model(x)
    check = Structure.is_of

    def is_of(*arguments):
        replays.append(made[0].replays)
        return check(*arguments)

    monkeypatch.setattr(Structure, "is_of", is_of)
    assert torch.equal(model(x), predict_batch(model, x))
    assert replays == [2, 3], "once a call, after the launch"
    model.pretrained.norm.eps = 0.5
    for found in (predict_batch(model, x), predict_batch(model, x)):
        assert torch.equal(found, modules(model, x))


def test_what_stays_outside_of_graphs(model, made):
    x = images()
    with torch.no_grad():
        model(x), model(x)
    replays = made[0].replays
    assert model(x).requires_grad, "with gradients"
    with torch.no_grad():
        wanted = modules(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(model(x), wanted), "autocast computes in 16 bits"
        seen = []
        for hook in (
            model.pretrained.norm.register_forward_hook(lambda *_: seen.append(1)),
            model.depth_head.register_forward_pre_hook(lambda *_: seen.append(1)),
            torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1)),
        ):
            assert torch.equal(model(x), wanted) and seen
            hook.remove()
            seen.clear()
        features = model(x, features=True)
        assert torch.equal(features[0], wanted) and isinstance(features, tuple)
        model.depth_head.forward = lambda *_: torch.ones(1, 1, 28, 42)
        assert torch.equal(model(x), torch.ones(1, 28, 42))
        del model.depth_head.forward
        mapped = torch.vmap(model)(torch.stack([x, x]))
        torch.testing.assert_close(mapped[0], wanted)
        made[0].reason = "the caller captures"
        assert torch.equal(model(x), wanted)
        made[0].reason = ""
        lists = model([x[0], images(1, 14, 28)[0]])
        assert [tuple(out.shape) for out in lists] == [(28, 42), (14, 28)]
        assert made[0].replays == replays
        assert torch.equal(model(x), wanted) and made[0].replays == replays + 1


@torch.no_grad()
def test_modes_that_see_operations_get_the_modules(model, made):
    x = images()
    model(x), model(x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as plain:
        modules(model, x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counted:
        model(x)
        predict_batch(model, x)
    assert counted.get_total_flops() == 2 * plain.get_total_flops() > 0
    assert made[0].replays == 1


@torch.no_grad()
def test_a_call_with_other_weights_moves_none_of_them(model, made):
    x = images()
    before = [model(x), model(x)][0]
    weights = {name: 1.5 * p.contiguous() for name, p in model.named_parameters()}
    places = [(p.data_ptr(), p.stride()) for p in weights.values()]
    other = torch.func.functional_call(model, weights, (x,))
    assert [(p.data_ptr(), p.stride()) for p in weights.values()] == places
    assert not torch.allclose(other, before)
    assert all(torch.equal(model(x), before) for _ in range(3))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@torch.no_grad()
@pytest.mark.slow
def test_compiled_and_traced_models_stay_outside(model, made):
    x = images()
    wanted = [model(x), model(x)][0]
    replays = made[0].replays
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), wanted)
    assert made[0].replays == replays
    model.depth_head.compile(backend="eager")
    for _ in range(2):  # the first call discards a result
        torch.testing.assert_close(model(x), wanted)
    assert made[0].replays == replays + 1 and model._optimized is None


@torch.no_grad()
def test_replaced_kinds_of_modules_are_not_captured(model, made, caplog):
    class Louder(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x = images()
    model(x), model(x)
    model.pretrained.blocks[0].attn.proj = Louder(32, 32)
    with caplog.at_level(logging.INFO, logger="dafast"):
        assert torch.equal(model(x), modules(model, x))
    assert "pretrained.blocks.0.attn.proj is Louder, not Linear" in caplog.text
    assert torch.equal(model(x), modules(model, x))
    assert made[0].replays == 2, "the first call discards a result"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_inference_mode_and_no_grad_share_a_graph(mode, model, made):
    x = images()
    with torch.inference_mode():
        model(x), model(x)
    with mode():
        assert torch.equal(model(x), modules(model, x))
    assert made[0].captures == 1 and made[0].replays == 2


@pytest.mark.slow
@torch.no_grad()
def test_threads_take_turns(model, made):
    inputs = [images(1 + i % 2, 28, 28) for i in range(24)]
    wanted = [modules(model, x) for x in inputs]

    def call(x):
        with torch.no_grad():
            return model(x)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(call, inputs))
    assert all(map(torch.equal, got, wanted))
    assert made[0].captures == 2 and made[0].replays == 22


@pytest.mark.parametrize("error", [RuntimeError("not permitted"), torch.OutOfMemoryError("full")])
@torch.no_grad()
def test_a_failed_capture_leaves_the_modules(error, model, made, caplog):
    made[0].error = error
    x = images()
    wanted = modules(model, x)
    with caplog.at_level(logging.INFO, logger="dafast"):
        assert all(torch.equal(model(x), wanted) for _ in range(4))
    text = f"no CUDA graph for (1, 3, 28, 42): {error}"
    assert [r.getMessage() for r in caplog.records].count(f"dafast: {text}") == 1, "tried once"
    made[0].error = None
    other = images(2)
    model(other), model(other)
    assert made[0].captures == 1, "other sizes are captured"


@torch.no_grad()
def test_modules_get_the_memory_of_the_graphs(model, made, monkeypatch):
    x, other = images(), images(2)
    model(x), model(x)
    run, calls = model._run_modules, []

    def short_of_memory(given):
        calls.append(len(given))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return run(given)

    monkeypatch.setattr(
        type(model), "_run_modules", lambda self, given, blocks=None: short_of_memory(given)
    )
    assert torch.equal(model(other), run(other).squeeze(1))
    assert calls == [2, 2] and not model._optimized._graphs


@torch.no_grad()
def test_graphs_are_released(model, made):
    x = images()
    model(x), model(x)
    assert len(model._optimized._graphs) == 1
    model.train()
    assert len(model._optimized._graphs) == 0, "training gets the memory"
    model.eval()
    assert torch.equal(model(x), modules(model, x)) and made[0].captures == 2
    assert model.optimize(cuda_graphs=False)._optimized is None
    assert model.optimize()._optimized is None, "the choice stays"
    model.infer(np.zeros((20, 30, 3), np.uint8))
    assert model._optimized is None
    assert isinstance(model.optimize(cuda_graphs=True)._optimized, GraphedForward)


def test_copies_and_pickles_start_without_graphs(model):
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._optimized is None
    assert isinstance(model._optimized, GraphedForward)


@pytest.mark.parametrize(
    "config", [tiny(max_depth=20.0), ZOE, WITH_SKY], ids=["metric", "bins", "sky"]
)
@torch.no_grad()
def test_every_kind_of_network(config, made, seed):
    model = make(config).optimize()
    x = images(2)
    for _ in range(3):
        assert torch.equal(model(x), modules(model, x))
    assert made[0].replays == 2
    if config.sky_head:
        skies = [predict_batch(model, x, sky=True)[:, 1], model.predict_sky(x)]
        assert all(torch.equal(sky, copy.deepcopy(model).predict_sky(x)) for sky in skies)
        assert (made[0].captures, made[0].replays) == (1, 4)


@torch.no_grad()
def test_the_decoder_is_laid_out_channels_last(made, seed):
    model = make()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    model.optimize()
    head = [p for p in model.depth_head.parameters() if p.ndim == 4]
    assert head and all(p.is_contiguous(memory_format=torch.channels_last) for p in head)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    places = [p.data_ptr() for p in model.parameters()]
    model.optimize()
    assert [p.data_ptr() for p in model.parameters()] == places, "once"


@pytest.mark.slow  # four forward passes in Triton's interpreter
@torch.no_grad()
def test_the_decoders_kernels_are_in_the_graph(made, seed):
    pytest.importorskip("triton")
    model, x = make(), images(height=14, width=28)
    expected = modules(model, x)
    with use_backend("triton"):
        for _ in range(2):
            got = model.optimize()(x)
    names = [func._schema.name for func, *_ in made[0].graphs[0].record.calls]
    # 14 convolutions of the fusion blocks, the first of the tail, and in float32 8 of 1x1, which
    # are products in 16 bits.
    assert names.count("dafast::bias_relu_add") == 23
    assert names.count("dafast::conv_transpose") == 2
    assert names.count("dafast::decoder_tail") == 1
    assert made[0].replays == 1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
