"""Our network against that of transformers, layer by layer, and our own conversion of weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from dafast import DepthAnything
from dafast.config import PRESETS, ModelConfig
from dafast.models.checkpoint import save_pretrained
from dafast.models.configurations import config_to_transformers
from dafast.models.conversion import LAYOUTS, from_official
from tests.tolerances import TOLERANCES

TOLERANCE = TOLERANCES[torch.float32].model
MODELS = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("vits", "v2-vits", "vitb", "vitl")),
    # The layers of vitb; only its taps are others.
    pytest.param("v2-vitb", marks=pytest.mark.exhaustive),
    "v2-metric-hypersim-vits",
]


def our_layers(model: DepthAnything) -> dict[str, nn.Module]:
    """Every module whose output is compared, in the order in which they run."""
    head, scratch = model.depth_head, model.depth_head.scratch
    layers: dict[str, nn.Module] = {
        f"block {i}": block for i, block in enumerate(model.pretrained.blocks)
    }
    layers |= {f"reassembled {i}": head.resize_layers[i] for i in range(4)}
    layers |= {f"layer{i}_rn": getattr(scratch, f"layer{i}_rn") for i in range(1, 5)}
    layers |= {f"refinenet{i}": getattr(scratch, f"refinenet{i}") for i in (4, 3, 2, 1)}
    layers |= {
        "output_conv1": scratch.output_conv1,
        "output_conv2.0": scratch.output_conv2[0],
        "before the last activation": scratch.output_conv2[2],
    }
    return layers


def their_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The same modules of transformers, under the same labels."""
    neck, head = model.neck, model.head
    layers: dict[str, nn.Module] = {
        f"block {i}": block for i, block in enumerate(model.backbone.encoder.layer)
    }
    layers |= {f"reassembled {i}": neck.reassemble_stage.layers[i] for i in range(4)}
    layers |= {f"layer{i}_rn": neck.convs[i - 1] for i in range(1, 5)}
    layers |= {f"refinenet{i}": neck.fusion_stage.layers[4 - i] for i in (4, 3, 2, 1)}
    layers |= {
        "output_conv1": head.conv1,
        "output_conv2.0": head.conv2,
        "before the last activation": head.conv3,
    }
    return layers


def record(layers: dict[str, nn.Module], run) -> dict[str, torch.Tensor]:
    """Outputs of the layers while ``run()`` is called, and its own under "output"."""
    seen: dict[str, torch.Tensor] = {}

    def keep(label: str):
        def hook(module, args, output):
            seen[label] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(label)) for label, module in layers.items()]
    with torch.inference_mode():
        output = run()
    for handle in handles:
        handle.remove()
    missing = [label for label in layers if label not in seen]
    assert not missing, f"never called: {missing}"
    return {label: seen[label] for label in layers} | {"output": output}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Fails at the first layer that differs by more than 1e-4 of its largest value."""
    for label, expected in theirs.items():
        assert ours[label].shape == expected.shape, label
        largest = expected.abs().max()
        error = ((ours[label] - expected).abs().max() / largest).item()
        assert error <= TOLERANCE, f"first difference at {label}: {error:.2e} of max|y|"


def assert_meaningful(output: torch.Tensor, largest: float = math.inf) -> None:
    """The output is of order 1 and hardly clipped, so that a difference would show."""
    assert output.isfinite().all()
    assert (output > 0).float().mean() > 0.6
    assert output.std() > 0.1
    assert output.max() <= largest


def trained_for(name: str) -> dict[str, int]:
    """Sizes of a test: the published ones for one model, a small image for the others.

    ViT-L has its layers, taps and decoder, and blocks of a quarter of their width.
    """
    if name == "vits":
        return {}
    narrow = {"embed_dim": 256, "num_heads": 4} if name.endswith("vitl") else {}
    return {"image_size": 154, "grid_size": 11, **narrow}


def random_pair(name: str, seed: int, transformers, randomise, calibrate, x, **changes):
    """Our model with random weights, and transformers' with the same ones."""
    config = dataclasses.replace(PRESETS[name], **changes)
    ours = DepthAnything(config).eval()
    randomise(ours, seed)
    small = torch.randn(1, 3, 154, 154, generator=torch.Generator().manual_seed(seed))
    last = ours.depth_head.scratch.output_conv2[2]
    mean, std = (0.0, 1.0) if config.is_metric else (1.0, 0.5)
    calibrate(lambda: ours(small), last, mean, std)
    with torch.device("meta"):  # which shares the weights of ours
        theirs = empty_transformers(config, transformers)
    state = from_official(ours.state_dict(), LAYOUTS["transformers_live"])
    theirs.load_state_dict(state, assign=True)
    return ours, theirs.eval()


def empty_transformers(config: ModelConfig, transformers):
    """transformers' model of our configuration, weights not yet set."""
    data = config_to_transformers(config, "float32")
    return transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig.from_dict(data)
    )


def photo(seed: int, height: int, width: int) -> torch.Tensor:
    """A random picture with structure at every scale, normalised: (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 3, height, width)
    for cells in (4, 16, 64):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        x += nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return x


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_agrees_with_transformers(name, seed, transformers, randomise, calibrate):
    sizes = trained_for(name)
    side = sizes.get("image_size", 518)
    x = photo(seed + 1, side, side)
    ours, theirs = random_pair(name, seed, transformers, randomise, calibrate, x, **sizes)

    expected = record(their_layers(theirs), lambda: theirs(x).predicted_depth)
    got = record(our_layers(ours), lambda: ours(x))

    assert got["output"].shape == (1, side, side)
    assert_meaningful(expected["output"], ours.config.max_depth or math.inf)
    assert_close(got, expected)


@pytest.mark.parametrize("name", ["v2-vits", pytest.param("v2-vitb", marks=pytest.mark.slow)])
def test_taps_agree_with_transformers(name, seed, transformers, randomise, calibrate):
    sizes = trained_for(name)
    side = sizes.get("image_size", 518)
    x = photo(seed + 1, side, side)
    ours, theirs = random_pair(name, seed, transformers, randomise, calibrate, x, **sizes)

    with torch.inference_mode():
        expected = theirs.backbone(x).feature_maps
        got = ours.get_intermediate_layers(x)

    assert len(got) == len(expected) == 4
    assert_close(
        {f"tap {i}": tap for i, tap in enumerate(got)},
        {f"tap {i}": tap[:, 1:] for i, tap in enumerate(expected)},
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("vits", (392, 518), marks=pytest.mark.slow),
        pytest.param("vits", (70, 644), marks=pytest.mark.slow),
        ("v2-metric-vkitti-vits", (140, 182)),
    ],
)
def test_other_sizes_agree_under_the_rule_of_transformers(
    name, size, seed, transformers, randomise, calibrate
):
    x = photo(seed + 1, *size)
    ours, theirs = random_pair(
        name, seed, transformers, randomise, calibrate, x, position_embedding="transformers"
    )

    expected = record(their_layers(theirs), lambda: theirs(x).predicted_depth)
    got = record(our_layers(ours), lambda: ours(x))

    assert_meaningful(expected["output"], ours.config.max_depth or math.inf)
    assert_close(got, expected)


@pytest.mark.slow
def test_the_two_rules_differ_except_at_the_trained_size(seed, randomise, calibrate):
    config = dataclasses.replace(PRESETS["vits"], image_size=266, grid_size=19)
    official = DepthAnything(config).eval()
    randomise(official, seed)
    x = photo(seed + 1, 140, 196)
    calibrate(lambda: official(x), official.depth_head.scratch.output_conv2[2], 1.0, 0.5)
    other = DepthAnything(dataclasses.replace(config, position_embedding="transformers"))
    other.eval().load_state_dict(official.state_dict())

    with torch.inference_mode():
        a, b = official(x), other(x)
        square = photo(seed + 2, 266, 266)
        assert torch.equal(official(square), other(square))

    assert (a - b).abs().max() > 100 * TOLERANCE * a.abs().max()


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    a, t = -0.75, np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def resize_matrix(trained: int, wanted: int, offset: float) -> np.ndarray:
    """(wanted, trained) matrix of bicubic interpolation along one side, edges repeated."""
    matrix = np.zeros((wanted, trained))
    scale = (wanted + offset) / trained
    for i in range(wanted):
        center = (i + 0.5) / scale - 0.5
        for j in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(j, 0), trained - 1)] += cubic(np.array(center - j))
    return matrix


@pytest.mark.parametrize("grid", [(28, 37), (19, 25), (37, 64), (37, 49), (1, 37), (3, 120)])
@pytest.mark.parametrize(("rule", "offset"), [("official", 0.1), ("transformers", 0.0)])
def test_position_embeddings_against_the_formula(rule, offset, grid, seed):
    config = dataclasses.replace(
        PRESETS["vits"], num_layers=4, out_indices=(0, 1, 2, 3), position_embedding=rule
    )
    encoder = DepthAnything(config).pretrained
    generator = torch.Generator().manual_seed(seed)
    encoder.pos_embed.data.normal_(generator=generator)
    rows, columns = grid

    got = encoder.interpolate_pos_embed(rows, columns).detach().double().numpy()[0]

    trained = encoder.pos_embed.detach().double().numpy()[0]
    table = trained[1:].reshape(37, 37, -1)
    expected = np.einsum(
        "yi,xj,ijc->yxc",
        resize_matrix(37, rows, offset),
        resize_matrix(37, columns, offset),
        table,
        optimize=True,
    ).reshape(rows * columns, -1)
    np.testing.assert_array_equal(got[0], trained[0])  # the cls token has no place in the picture
    # PyTorch computes the coordinates in float32: 1e-6 of a cell or two at the far end, times
    # values of up to 4 and their slopes.
    np.testing.assert_allclose(got[1:], expected, atol=1e-4)


def test_position_embeddings_at_the_trained_size_are_the_weights(seed):
    encoder = DepthAnything("vits").pretrained
    encoder.pos_embed.data.normal_(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(encoder.interpolate_pos_embed(37, 37), encoder.pos_embed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vits", pytest.param("v2-metric-hypersim-vits", marks=pytest.mark.exhaustive)],
)
def test_weights_of_transformers_through_their_files(
    name, seed, transformers, randomise, calibrate, tmp_path
):
    """The other way round: transformers' model is the original, and its saved folder the way."""
    x, small = photo(seed + 1, 518, 518), photo(seed + 1, 154, 154)
    theirs = empty_transformers(PRESETS[name], transformers).eval()
    randomise(theirs, seed)
    metric = PRESETS[name].is_metric
    calibrate(lambda: theirs(small), theirs.head.conv3, *((0.0, 1.0) if metric else (1.0, 0.5)))
    theirs.save_pretrained(tmp_path / "hf")
    torch.save(theirs.state_dict(), tmp_path / "live.pth")

    ours = DepthAnything.from_pretrained(tmp_path / "hf", device="cpu", dtype="float32")
    live = DepthAnything.from_pretrained(
        tmp_path / "live.pth", config=name, device="cpu", dtype="float32"
    )

    assert ours.config.name == name  # read from transformers' config.json
    assert {
        k: v.tolist() for k, v in ours.depth_head.scratch.output_conv1.state_dict().items()
    } == {k: v.tolist() for k, v in theirs.head.conv1.state_dict().items()}
    loaded = live.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    expected = record(their_layers(theirs), lambda: theirs(x).predicted_depth)
    assert_meaningful(expected["output"])
    assert_close(record(our_layers(ours), lambda: ours(x)), expected)


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("vits", "v2-vits", "v2-metric-vkitti-vits")
        ),
        "nano",
    ],
)
def test_transformers_reads_our_folder_and_we_read_it_back(
    name, seed, transformers, randomise, tmp_path
):
    ours = DepthAnything(name).eval()
    randomise(ours, seed)
    save_pretrained(ours, tmp_path, layout="transformers")

    theirs, loading = transformers.DepthAnythingForDepthEstimation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values()), loading
    expected = from_official(ours.state_dict(), LAYOUTS["transformers_live"])
    state = theirs.state_dict()
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    assert theirs.config.backbone_config.out_indices == [i + 1 for i in ours.config.out_indices]
    assert theirs.config.depth_estimation_type == (
        "metric" if ours.config.is_metric else "relative"
    )
    assert theirs.config.max_depth == (ours.config.max_depth or 1)

    back = DepthAnything.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert back.config == ours.config
    loaded = back.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_the_preprocessor_of_our_folder_is_one_of_transformers(transformers, tmp_path, rng):
    save_pretrained(DepthAnything("nano"), tmp_path, layout="transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert "DPT" in type(processor).__name__
    picture = rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2] % 14 == pixels.shape[-1] % 14 == 0
    assert max(pixels.shape[-2:]) > PRESETS["nano"].image_size - 14
