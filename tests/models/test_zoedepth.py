"""ZoeDepth's head against that of transformers, part by part; and the published files' layout."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from dafast import DepthAnything
from dafast.config import PRESETS, ModelConfig
from dafast.models.checkpoint import CheckpointError, load_encoder
from dafast.models.configurations import config_to_transformers
from dafast.models.conversion import LAYOUTS, from_official
from dafast.models.zoedepth import MetricBinsHead, attract, log_binomial
from tests.tiny import tiny
from tests.tolerances import TOLERANCES

TINY = tiny(
    embed_dim=64,
    num_layers=5,
    num_heads=1,
    features=16,
    out_channels=(8, 12, 16, 20),
    out_indices=(1, 2, 3, 4),
    image_size=56,
    grid_size=4,
    max_depth=10.0,
    bin_centers="softplus",
    output_align_corners=True,
)
KINDS = ["softplus", "normed"]
SIZES = [(2, 3), (4, 6), (8, 12), (16, 24), (32, 48)]  # of the deepest map and the fused ones
OUTPUT = (56, 84)


def config(kind: str) -> ModelConfig:
    return dataclasses.replace(TINY, bin_centers=kind)


def theirs_of(ours: MetricBinsHead, kind: str, transformers) -> torch.nn.Module:
    """transformers' head with our weights."""
    from transformers.models.zoedepth.modeling_zoedepth import ZoeDepthMetricDepthEstimationHead

    settings = transformers.ZoeDepthConfig(
        bin_configurations=[{"name": "x", "n_bins": 64, "min_depth": 1e-3, "max_depth": 10.0}],
        bin_centers_type=kind,
        bin_embedding_dim=128,
        num_attractors=[16, 8, 4, 1],
        attractor_alpha=1000,  # as published; what acts is 300
        bottleneck_features=TINY.features,
        fusion_hidden_size=TINY.features,
        num_relative_features=32,
        min_temp=0.0212,
        max_temp=50.0,
    )
    head = ZoeDepthMetricDepthEstimationHead(settings)
    state = {
        name.replace("_net.0", "conv1").replace("_net.2", "conv2"): value
        for name, value in ours.state_dict().items()
    }
    head.load_state_dict(state)
    # Integer buffers, which would make the coefficients float32 also in a float64 network; the
    # softmax divides their rounding errors by temperatures as low as 0.02.
    transform = head.conditional_log_binomial.log_binomial_transform
    transform.k_idx, transform.k_minus_1 = transform.k_idx.float(), transform.k_minus_1.float()
    return head.eval()


def random_head(kind: str, seed: int, randomise) -> MetricBinsHead:
    """Random weights with which the depth varies: bins apart, and distributions that choose."""
    head = MetricBinsHead(config(kind)).eval()
    randomise(head, seed)
    with torch.no_grad():
        head.seed_bin_regressor._net[2].weight.mul_(5)
        head.conditional_log_binomial.mlp[2].bias.copy_(torch.tensor([0.0, 0.0, -5.0, 0.0]))
    return head


def activations(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """What the decoder hands over, random: relative map, last features, deepest and fused maps."""
    fused = [torch.randn(batch, TINY.features, *size) for size in SIZES]
    return torch.rand(batch, 1, *OUTPUT), torch.randn(batch, 32, *OUTPUT).relu(), fused


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, what
    # A ReLU may be 0 everywhere, and the gradients before it with it.
    scale = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
    error = ((ours - theirs).abs().max() / scale).item()
    assert error <= TOLERANCES[ours.dtype].model, f"{what}: {error:.2e} of max|y|"


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_agrees_with_transformers(kind, seed, transformers, randomise):
    ours = random_head(kind, seed, randomise).double()
    theirs = theirs_of(ours, kind, transformers).double()
    relative, features, fused = activations()
    relative, features = relative.double(), features.double()
    fused = [level.double() for level in fused]
    with torch.inference_mode():
        bottleneck = ours.conv2(fused[0])
        assert_close(bottleneck, theirs.conv2(fused[0]), "conv2")
        seeds = ours._seeds(ours.seed_bin_regressor(bottleneck))
        expected = theirs.seed_bin_regressor(bottleneck)[1]
        span = 10.0 - 1e-3
        assert_close(seeds * span + 1e-3 if kind == "normed" else seeds, expected, "seeds")
        embedding = ours.seed_projector(bottleneck)
        assert_close(embedding, theirs.seed_projector(bottleneck), "seed_projector")
        for i, level in enumerate(fused[1:]):
            projected = ours.projectors[i](level)
            assert_close(projected, theirs.projectors[i](level), f"projector {i}")
            points = ours.attractors[i](projected)
            points = points[:, ::2] + 1e-3 if kind == "normed" else points
            centers = torch.rand(2, 64, *level.shape[2:], dtype=torch.float64)
            expected = theirs.attractors[i](projected, centers)
            assert_close(attract(centers, points), expected[0], f"attractor {i}")
        last = torch.cat([features, relative], dim=1)
        low = torch.randn(2, 128, *SIZES[-1], dtype=torch.float64)
        enlarged = torch.nn.functional.interpolate(low, OUTPUT, mode="bilinear", align_corners=True)
        share = ours.conditional_log_binomial(last, low, torch.float64)
        assert_close(share, theirs.conditional_log_binomial(last, enlarged), "binomial")
        assert torch.allclose(share.sum(1), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_agree_with_transformers(kind, seed, transformers, randomise):
    ours = random_head(kind, seed, randomise)
    theirs = theirs_of(ours, kind, transformers)
    results = []
    for head in (ours.double(), theirs.double()):
        torch.manual_seed(seed)
        relative, features, fused = (
            x.double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in activations()
        )
        fused = [x.double().requires_grad_() for x in fused]
        if head is ours:
            out = head(relative, features, fused)
        else:
            out = head(features, fused[0], fused[1:], relative[:, 0])[0]
        (out * torch.linspace(0.5, 2, OUTPUT[1])).sum().backward()
        inputs = {"relative": relative, "features": features}
        inputs |= {f"fused {i}": x for i, x in enumerate(fused)}
        gradients = {name: x.grad for name, x in inputs.items()}
        gradients |= {
            name.replace("_net.0", "conv1").replace("_net.2", "conv2"): p.grad
            for name, p in head.named_parameters()
        }
        results.append({"out": out.detach(), **gradients})
    assert results[0]["out"].std() > 0.02
    assert results[0].keys() == results[1].keys()
    for name, expected in results[1].items():
        assert_close(results[0][name], expected, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height", [56, 84])
def test_whole_network_agrees_with_transformers(
    kind, height, seed, transformers, randomise, calibrate
):
    """Our encoder, decoder and head against those of transformers' two models put together.

    In float64: temperatures as low as 0.02 enlarge rounding errors of some random networks.
    """
    settings = dataclasses.replace(config(kind), position_embedding="transformers")
    ours = DepthAnything(settings).eval()
    randomise(ours, seed)
    ours.metric_head = random_head(kind, seed + 1, randomise)
    x = torch.randn(1, 3, height, 84)
    last = ours.depth_head.scratch.output_conv2[2]
    calibrate(lambda: ours(x), last, 1.0, 0.5)
    relative_config = dataclasses.replace(settings, max_depth=None, bin_centers="")
    relative = transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig.from_dict(
            config_to_transformers(relative_config, "float32")
        )
    ).eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("metric_head.")}
    relative.load_state_dict(from_official(state, LAYOUTS["transformers_live"]))
    head = theirs_of(ours.metric_head, kind, transformers)
    ours, relative, head, x = (part.double() for part in (ours, relative, head, x))

    seen = {}
    parts = {"last": relative.head.activation1, "deepest": relative.neck.convs[3]}
    parts |= {f"fused {i}": relative.neck.fusion_stage.layers[i] for i in range(4)}
    for label, module in parts.items():
        module.register_forward_hook(lambda m, args, out, label=label: seen.update({label: out}))
    with torch.inference_mode():
        disparity = relative(x).predicted_depth
        levels = [seen[f"fused {i}"] for i in range(4)]
        expected = head(seen["last"], seen["deepest"], levels, disparity)[0]
        got = ours(x)
    assert got.shape == (1, height, 84) and got.dtype == torch.float64
    assert got.std() > 0.02  # of 60 random networks the least was 0.12
    assert_close(got, expected[:, 0], "depth")


def test_log_binomial_is_one(seed):
    """Stirling's approximation is close to the distribution itself, at temperature 1."""
    p = torch.rand(1, 1, 3, 4, dtype=torch.float64) * 0.8 + 0.1
    got = log_binomial(p, torch.ones_like(p))
    k = torch.arange(64, dtype=torch.float64).view(-1, 1, 1)
    exact = torch.distributions.Binomial(63, p).log_prob(k).exp()
    assert (got - exact).abs().sum(1).max() < 0.2  # Stirling without its root is off at both ends
    assert ((got * k).sum(1) / 63 - p[:, 0]).abs().max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_random_head_spans_the_range(kind, seed):
    """A training may start from it: every bin is within the range, and they differ."""
    head = MetricBinsHead(dataclasses.replace(config(kind), max_depth=80.0))
    with torch.inference_mode():
        out = head(*activations())
        seeds = head._seeds(head.seed_bin_regressor(head.conv2(activations()[2][0])))
    assert out.min() > 0 and out.max() < 80
    top = 1.0 if kind == "normed" else 80.0
    assert seeds.min() < 0.05 * top and seeds.max() > 0.7 * top


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, seed, randomise):
    ours = DepthAnything(TINY).eval()
    randomise(ours, seed)
    x = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        expected = ours(x)
        got = ours.to(dtype)(x.to(dtype))
    assert got.dtype == torch.float32
    error = (got - expected).abs().mean() / expected.abs().mean()
    assert error < TOLERANCES[dtype].model


# ------------------------------------------------------------------------------ the published files

# As `depth_anything_metric_depth_{indoor,outdoor}.pt` has them next to core.core.*: the attribute
# names of the published ZoeDepth code, spelled out so that a slip in the map shows.
PUBLISHED = {
    *(f"conv2.{p}" for p in ("weight", "bias")),
    *(f"seed_bin_regressor._net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
    *(f"seed_projector._net.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
    *(f"projectors.{n}._net.{i}.{p}" for n in range(4) for i in (0, 2) for p in ("weight", "bias")),
    *(f"attractors.{n}._net.{i}.{p}" for n in range(4) for i in (0, 2) for p in ("weight", "bias")),
    *(f"conditional_log_binomial.mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
    "conditional_log_binomial.log_binomial_transform.k_idx",
    "conditional_log_binomial.log_binomial_transform.K_minus_1",
}


def load(path, **options) -> DepthAnything:
    return DepthAnything.from_pretrained(path, **{"device": "cpu", "dtype": "float32"} | options)


def same_weights(a: DepthAnything, b: DepthAnything) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_published_layout_both_ways(kind, seed, tmp_path, randomise, notices):
    model = DepthAnything(config(kind))
    randomise(model, seed)
    model.save_pretrained(tmp_path / "ours")
    assert same_weights(model, load(tmp_path / "ours"))
    model.save_pretrained(tmp_path / "theirs", layout="zoedepth")
    again = load(tmp_path / "theirs")
    assert same_weights(model, again) and again.config == model.config

    state = load_file(tmp_path / "theirs/model.safetensors")
    core = {k for k in state if k.startswith("core.core.")}
    assert set(state) - core == PUBLISHED
    relative = dataclasses.replace(model.config, max_depth=None, bin_centers="")
    with torch.device("meta"):
        official = DepthAnything(relative).state_dict()
    assert core == {f"core.core.{k}" for k in official}
    # As a trainer saves it, and without a configuration.
    torch.save({"model": state, "epoch": 5}, tmp_path / "best.pt")
    guessed = load(tmp_path / "best.pt")
    assert same_weights(model, guessed) and guessed.config.bin_centers == kind
    assert guessed.config.max_depth == {"softplus": 10.0, "normed": 80.0}[kind]
    assert "taken for a V1 metric model" in notices.text
    # An encoder may start from it.
    other = DepthAnything(relative)
    load_encoder(other, tmp_path / "best.pt")
    assert torch.equal(other.pretrained.pos_embed, model.pretrained.pos_embed)


@pytest.mark.parametrize("place", ["indoor", "outdoor"])
@pytest.mark.parametrize("kind", KINDS)
def test_published_file_by_its_name(place, kind, tmp_path, monkeypatch, seed):
    """The name says the preset; the kind of the bins is read off the weights."""
    name = f"metric-{place}-vitl"
    preset = PRESETS[name]
    assert (preset.max_depth, preset.image_size) == {
        "indoor": (10.0, 392),
        "outdoor": (80.0, 378),
    }[place]
    published = {key: getattr(preset, key) for key in ("max_depth", "hub_id", "hub_file")}
    small = dataclasses.replace(TINY, name=name, **published)
    monkeypatch.setitem(PRESETS, name, small)
    model = DepthAnything(dataclasses.replace(small, bin_centers=kind))
    state = from_official(model.state_dict(), LAYOUTS["zoedepth"])
    path = tmp_path / f"depth_anything_metric_depth_{place}.pt"
    torch.save({"model": state}, path)
    loaded = load(path)
    assert same_weights(model, loaded) and loaded.config.bin_centers == kind
    assert loaded.config.name == name
    assert loaded.infer_metric(torch.rand(3, 30, 40)).shape == (30, 40)


@pytest.mark.slow
def test_what_does_not_fit_is_told(tmp_path, seed):
    bins = DepthAnything(TINY)
    with pytest.raises(ValueError, match="has metric bins; use 'official'"):
        bins.save_pretrained(tmp_path / "x", layout="transformers")
    relative = DepthAnything(dataclasses.replace(TINY, max_depth=None, bin_centers=""))
    with pytest.raises(ValueError, match="has no metric bins; use 'official'"):
        relative.save_pretrained(tmp_path / "x", layout="zoedepth")
    relative.save_pretrained(tmp_path / "hf", layout="transformers")
    with pytest.raises(CheckpointError, match=r"missing .*metric_head\.conv2"):
        load(tmp_path / "hf/model.safetensors", config=TINY)
    state = from_official(bins.state_dict(), LAYOUTS["zoedepth"])
    del state["conv2.bias"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match=r"missing \(1\): conv2\.bias"):
        load(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bin_centers": "hybrid"}, "bin_centers='hybrid'; use one of .*softplus"),
        ({"max_depth": None}, "bin_centers need a max_depth"),
        ({"max_depth": 0.0}, "must be a positive number"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_a_preset_says_where_its_file_is(tmp_path, monkeypatch):
    """The published files lie in a space of the hub, not in a model repository."""
    with pytest.raises(CheckpointError) as error:
        load("metric-indoor-vitl", cache_dir=tmp_path, local_files_only=True)
    assert (
        "/spaces/LiheYoung/Depth-Anything/resolve/main/checkpoints_metric_depth/"
        "depth_anything_metric_depth_indoor.pt"
    ) in str(error.value)
