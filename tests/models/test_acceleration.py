"""`dafast.accelerate`: transformers' model with our forward, compared with its own."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import logging
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import dafast
from dafast import DepthAnything
from dafast.models import acceleration, transformers_bridge
from dafast.ops.linear_int8 import why_slow_int8
from dafast.optional import MissingPackageError
from tests.models.transformers_models import CONFIGS, assert_close, original_of
from tests.tiny import tiny
from tests.tolerances import TOLERANCES


def assert_follows(model: nn.Module, served: list, x: torch.Tensor, fast: bool = True) -> None:
    """An accelerated model predicts what a restored copy of it does, by our forward or not."""
    before = len(served)
    with torch.no_grad():
        got = model(x).predicted_depth
        expected = original_of(model)(x).predicted_depth
    assert (len(served) > before) is fast
    assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "height", "width"),
    [
        ("v1", 1, 28, 28),
        ("v1", 2, 14, 98),
        ("v2", 3, 42, 28),
        ("v2", 1, 45, 69),
        ("metric", 1, 28, 28),
        ("metric", 2, 14, 98),
        ("metric", 1, 45, 69),
    ],
)
def test_outputs(make_transformers, served, name, batch, height, width):
    model = make_transformers(name)
    assert next(model.parameters()).requires_grad
    x = torch.randn(batch, 3, height, width)
    with torch.inference_mode():
        expected = model(x).predicted_depth
    assert dafast.accelerate(model) is model
    with torch.inference_mode():
        outputs = model(x)

    assert type(outputs).__name__ == "DepthEstimatorOutput"
    assert list(outputs) == ["predicted_depth"]
    assert len(served) == 1
    assert_close(outputs.predicted_depth, expected)


def test_other_outputs(make_transformers, served):
    """What the original returns in other ways, and requests that only it can serve."""
    model = make_transformers()
    x = torch.randn(2, 3, 42, 28)
    with torch.no_grad():
        before = {
            "tuple": model(x, return_dict=False),
            "hidden": model(x, output_hidden_states=True),
            "attentions": model(pixel_values=x, output_attentions=True),
        }
        dafast.accelerate(model)
        got = model(x, return_dict=False)
        assert type(got) is tuple
        assert len(got) == len(before["tuple"]) == 1
        assert_close(got[0], before["tuple"][0])
        assert len(served) == 1
        hidden = model(x, output_hidden_states=True)
        attentions = model(x, output_attentions=True)
        with pytest.raises(NotImplementedError):
            model(x, labels=x[:, 0])
        assert len(served) == 1
        model.config.output_hidden_states = True
        assert model(x).hidden_states is not None
        model.config.output_hidden_states = False
        # The hooks with which transformers recorded hidden states are still there.
        assert model(x).hidden_states is None
        assert len(served) == 2
    for name, outputs in {"hidden": hidden, "attentions": attentions}.items():
        assert outputs.keys() == before[name].keys()
        assert torch.equal(outputs.predicted_depth, before[name].predicted_depth)
    pairs = zip(hidden.hidden_states, before["hidden"].hidden_states, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_wrong_inputs_fail_as_before(make_transformers):
    model = make_transformers()
    shapes = [(3, 28, 28), (1, 1, 28, 28), (1, 3, 7, 28), (0, 3, 28, 28)]
    for x in [*map(torch.randn, shapes), "x"]:
        errors = []
        for change in (dafast.restore, dafast.accelerate):
            with torch.no_grad(), pytest.raises(Exception) as raised:
                change(model)(x)
            errors.append((raised.type, str(raised.value)))
        assert errors[0] == errors[1]


@pytest.mark.slow
def test_changed_weights_are_seen(make_transformers, served):
    model = dafast.accelerate(make_transformers("metric"))
    x = torch.randn(1, 3, 28, 42)
    query = next(w for n, w in model.named_parameters() if "layer.1" in n and ".q_proj.w" in n)
    other = make_transformers("metric").state_dict()

    def reloads():
        model.load_state_dict({k: v * 1.1 for k, v in other.items()})

    changes = {
        "in place": lambda: query.detach().mul_(1.5),
        "through data": lambda: query.data.add_(0.1),
        "through numpy": lambda: np.multiply(query.detach().numpy(), 0.5, out=query.data.numpy()),
        "new data": lambda: setattr(query, "data", query.data * -1),
        "load_state_dict": reloads,
        "a new parameter": lambda: setattr(model.head.conv3, "bias", nn.Parameter(torch.ones(1))),
    }
    assert_follows(model, served, x)
    for label, change in changes.items():
        with torch.no_grad():
            before = model(x).predicted_depth
            change()
            assert not torch.equal(model(x).predicted_depth, before), label
        assert_follows(model, served, x)
    model.to(torch.float64)
    assert_follows(model, served, x.double(), fast=False)  # not packed
    model.to(torch.float32)
    assert_follows(model, served, x)


def test_bfloat16(make_transformers, served):
    model = make_transformers().to(torch.bfloat16)
    x = torch.randn(1, 3, 42, 42)
    with torch.inference_mode():
        expected = model(x).predicted_depth
        got = dafast.accelerate(model)(x).predicted_depth
    assert bool(served) is torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert_close(got, expected, TOLERANCES[torch.bfloat16].model)


def test_the_rest_stays(make_transformers, tmp_path, transformers):
    """Type, keys, files, attributes: as before, and again after `restore`."""
    model = make_transformers("metric")
    cls, keys, attributes = type(model), list(model.state_dict()), dict(vars(model))
    model.save_pretrained(tmp_path / "before")
    dafast.accelerate(model)
    with torch.no_grad():
        model(torch.randn(1, 3, 28, 28))
    model.save_pretrained(tmp_path / "after")

    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert list(model.state_dict()) == keys
    assert isinstance(model, cls)
    assert type(model).__name__ == cls.__name__
    assert dafast.restore(model) is model
    assert type(model) is cls
    assert vars(model) == attributes
    assert dafast.restore(model) is model  # not accelerated: nothing to do


def test_hooks(make_transformers, served):
    model = dafast.accelerate(make_transformers())
    x, seen = torch.randn(1, 3, 28, 28), []
    handle = model.register_forward_hook(lambda module, args, output: seen.append("model"))
    assert_follows(model, served, x)
    assert seen == ["model", "model"]  # and once in the copy
    handle.remove()
    part = model.neck.convs[0].register_forward_hook(lambda *args: seen.append("part"))
    assert_follows(model, served, x, fast=False)
    assert seen[2:] == ["part", "part"]
    part.remove()
    assert_follows(model, served, x)


def test_gradients_and_training(make_transformers, served):
    model = dafast.accelerate(make_transformers())
    x = torch.randn(1, 3, 28, 28)
    model(x).predicted_depth.sum().backward()
    assert model.backbone.embeddings.cls_token.grad.abs().sum() > 0
    model.train()
    with torch.no_grad():
        model(x)
    assert served == []
    model.eval().requires_grad_(False)
    assert not model(x).predicted_depth.requires_grad
    assert len(served) == 1
    x.requires_grad_()
    model(x).predicted_depth.sum().backward()
    assert x.grad.abs().sum() > 0
    assert len(served) == 1


def test_other_contexts(make_transformers, served):
    model = dafast.accelerate(make_transformers())
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = original_of(model)(x).predicted_depth
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).predicted_depth.dtype == torch.bfloat16
        state = {name: value.detach() for name, value in model.named_parameters()}
        got = torch.func.functional_call(model, state, (x,)).predicted_depth
        assert_close(got, expected)
    assert served == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["lora", "activation", "eps", "max_depth", "removed", "taps", "embedding"]
)
def test_changed_parts_run_as_they_are(make_transformers, served, change):
    model = dafast.accelerate(make_transformers("v2"))
    x = torch.randn(1, 3, 28, 28)
    assert_follows(model, served, x)
    layer = model.backbone.encoder.layer[0]
    if change == "lora":
        layer.mlp.fc1 = nn.Sequential(layer.mlp.fc1, nn.Identity())
    elif change == "activation":
        layer.mlp.activation_fn = nn.SiLU()
    elif change == "eps":
        layer.norm1.eps = 0.5
    elif change == "max_depth":
        model.head.max_depth = 2
    elif change == "taps":
        model.backbone.config.out_indices = [1, 2, 3, 4]
    elif change == "embedding":
        model.backbone.config.out_indices = [0, 2, 3, 4]  # what comes before the first block
    else:
        layer.mlp.fc1.bias = None
    assert_follows(model, served, x, fast=change == "taps")


@pytest.mark.slow
def test_compiled_and_exported(make_transformers, served):
    model = dafast.accelerate(make_transformers())
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = original_of(model)(x).predicted_depth
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(x).predicted_depth, expected)
        exported = torch.export.export(model, (x,)).module()
        assert_close(exported(x).predicted_depth, expected)
    assert served == []


@pytest.mark.slow
def test_a_model_made_in_inference_mode(make_transformers, served):
    with torch.inference_mode():
        model = dafast.accelerate(make_transformers())
        x = torch.randn(1, 3, 28, 28)
        first = model(x).predicted_depth
        model.backbone.encoder.layer[0].attention.q_proj.weight.mul_(3)
        assert not torch.equal(model(x).predicted_depth, first)
        assert_follows(model, served, x)
    with torch.no_grad():
        assert_follows(model, served, x)


@pytest.mark.slow
def test_threads(make_transformers):
    model = dafast.accelerate(make_transformers())
    x = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected = original_of(model)(x).predicted_depth

    def run(_):
        with torch.no_grad():  # of this thread
            return [model(x).predicted_depth for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for depth in itertools.chain.from_iterable(pool.map(run, range(4))):
            assert_close(depth, expected)


@pytest.mark.slow
def test_nothing_keeps_a_model_alive(make_transformers):
    model = dafast.accelerate(make_transformers())
    with torch.no_grad():
        model(torch.randn(1, 3, 28, 28))
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(make_transformers, served, way):
    model = dafast.accelerate(make_transformers())
    x = torch.randn(1, 3, 28, 28)
    if way != "deepcopy":
        # transformers 5 makes a new model with hooks that cannot be pickled.
        for part in model.modules():
            part._forward_hooks.clear()
    with torch.no_grad():
        expected = model(x).predicted_depth
        if way == "deepcopy":
            other = copy.deepcopy(model)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(model))
        else:
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            other = torch.load(buffer, weights_only=False)
        served.clear()
        assert torch.equal(other(x).predicted_depth, expected)
        other.head.conv3.bias.add_(1)
        assert not torch.equal(other(x).predicted_depth, expected)
        assert torch.equal(model(x).predicted_depth, expected)
    assert len(served) == 3
    assert type(dafast.restore(other)) is type(dafast.restore(model))


def test_a_second_call(make_transformers, served):
    model = dafast.accelerate(make_transformers())
    forward = model._dafast
    assert dafast.accelerate(model)._dafast is forward
    if not why_slow_int8():
        assert dafast.accelerate(model, int8=True)._dafast.int8
    type(model)(model.config)  # a new model of the class is the original one
    new = type(model)(model.config).eval()
    with torch.no_grad():
        new(torch.randn(1, 3, 28, 28))
    assert served == []


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_that_share_weights(make_transformers, name):
    """What serves devices other than the CPU, on the CPU."""
    model = make_transformers(name)
    x = torch.randn(2, 3, 28, 70)
    run = acceleration._OnModules(*acceleration._network(model))
    weights = dict(model.named_parameters())
    shared = {w.data_ptr() for w in weights.values()} & {
        w.data_ptr() for w in run.network.parameters()
    }
    split = [n for n in weights if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj")]
    assert len(shared) >= len(weights) - len(split) - 1  # all but these, and the mask token
    with torch.no_grad():
        assert_close(run(x), model(x).predicted_depth)
        for key in split:
            weights[key].data.mul_(-1.3)  # PyTorch counts no version of it
        model.head.conv3.bias.data.add_(0.1)
        assert_close(run(x), model(x).predicted_depth)
    with torch.inference_mode():
        assert_close(run(x), model(x).predicted_depth)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(make_transformers, served, monkeypatch, name, dtype):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = dafast.accelerate(make_transformers(name).to("cuda", dtype))
    tolerance = TOLERANCES[dtype].model
    for height, width in ((28, 28), (42, 70)):
        x = torch.randn(2, 3, height, width, device="cuda", dtype=dtype)
        for _ in range(2):
            with torch.no_grad():
                got = model(x).predicted_depth
                expected = original_of(model)(x).predicted_depth
                assert_close(got, expected, tolerance)
                for weight in model.parameters():
                    weight.data.mul_(1.01)
    assert len(served) == 4
    model.to("cpu", torch.float32)
    assert_follows(model, served, torch.randn(1, 3, 28, 28))
    with pytest.raises(ValueError, match="for a CPU"):
        dafast.accelerate(model.to("cuda"), int8=True)


@pytest.mark.skipif(bool(why_slow_int8()), reason=why_slow_int8())
def test_int8(make_transformers, served):
    model = dafast.accelerate(make_transformers("v2"), int8=True)
    x = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        got, expected = model(x).predicted_depth, original_of(model)(x).predicted_depth
    assert len(served) == 1
    assert not torch.allclose(got, expected, rtol=1e-4)
    assert (got - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_reason_is_logged_once(make_transformers, caplog):
    caplog.set_level(logging.INFO, "dafast")
    model = dafast.accelerate(make_transformers())
    for _ in range(3):
        model(torch.randn(1, 3, 28, 28))
    messages = [r.message for r in caplog.records if "accelerated model" in r.message]
    assert len(messages) == 1
    assert "gradients are enabled: use torch.no_grad()" in messages[0]


@pytest.mark.slow
def test_what_cannot_be_accelerated(make_transformers, transformers, monkeypatch):
    with pytest.raises(TypeError, match="not DepthAnything"):
        dafast.accelerate(DepthAnything(tiny()))
    with pytest.raises(TypeError, match="not str"):
        dafast.accelerate("depth")
    with pytest.raises(TypeError, match="not Linear"):
        dafast.restore(nn.Linear(1, 1))

    class Derived(transformers.DepthAnythingForDepthEstimation):
        pass

    model = make_transformers()
    model.__class__ = Derived
    with pytest.raises(TypeError, match="Derived is derived from"):
        dafast.accelerate(model)
    model = make_transformers()
    model.forward = lambda pixel_values: None
    with pytest.raises(ValueError, match="forward was replaced"):
        dafast.accelerate(model)
    model = make_transformers()
    model.backbone.encoder.layer[0].mlp.fc1 = nn.Sequential(model.backbone.encoder.layer[0].mlp.fc1)
    with pytest.raises(ValueError, match="other weights than its configuration"):
        dafast.accelerate(model)
    assert type(model) is transformers.DepthAnythingForDepthEstimation  # and unchanged
    config = make_transformers().config
    config.head_hidden_size = 16
    with pytest.raises(ValueError, match="head_hidden_size=16"):
        dafast.accelerate(transformers.DepthAnythingForDepthEstimation(config))
    if why_slow_int8():
        with pytest.raises(RuntimeError, match="int8"):
            dafast.accelerate(make_transformers(), int8=True)
    monkeypatch.setattr(acceleration, "why_slow_int8", lambda: "")
    with pytest.raises(ValueError, match="the model is on meta"):
        dafast.accelerate(make_transformers().to("meta"), int8=True)


def test_without_transformers(monkeypatch):
    why = "transformers is not installed"
    monkeypatch.setattr(transformers_bridge, "why_no_module", lambda name: why)
    ours = DepthAnything(tiny())
    for call in (dafast.accelerate, dafast.restore, DepthAnything.from_transformers):
        with pytest.raises(MissingPackageError, match=rf"{why}: pip install 'dafast\[transf"):
            call(ours)
    with pytest.raises(MissingPackageError, match=why):
        ours.to_transformers()
