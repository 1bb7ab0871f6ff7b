"""Sizes, pixels and the way back, for both fits."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dafast.config import IMAGENET_MEAN, IMAGENET_STD
from dafast.ops import (
    OPS,
    BackendError,
    _extension,
    pad,
    plan_geometry,
    postprocess,
    preprocess,
    resize_bilinear,
    use_backend,
)
from tests.instruction_sets import CPP, threads
from tests.ops import parity
from tests.pairwise import grid


def _official_size(width, height, size=518, multiple=14):
    """The official rule written out from its description, on numpy like the script."""
    scale = max(size / height, size / width)
    sides = []
    for side in (height, width):
        rounded = int(np.round(scale * side / multiple) * multiple)
        sides.append(
            rounded if rounded >= size else int(np.ceil(scale * side / multiple)) * multiple
        )
    return tuple(sides)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (400, 300, (518, 686)),
        (300, 400, (686, 518)),
        (518, 518, (518, 518)),
        (640, 480, (518, 686)),
        (1920, 1080, (518, 924)),
        (1242, 375, (518, 1722)),
        (1000, 100, (518, 5180)),
        (37, 41, (574, 518)),
    ],
)
def test_official_sizes(width, height, expected):
    geometry = plan_geometry(height, width, fit="official", max_tokens=10**6)
    assert geometry.resized == geometry.network == expected == _official_size(width, height)
    assert geometry.padding == (0, 0, 0, 0)


def test_official_sizes_at_random(seed):
    rng = np.random.default_rng(seed)
    for width, height in rng.integers(20, 4000, (300, 2)):
        if max(width / height, height / width) < 5:
            geometry = plan_geometry(int(height), int(width), fit="official")
            assert geometry.network == _official_size(int(width), int(height))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (640, 480, (378, 504)),
        (1920, 1080, (280, 504)),
        (1242, 375, (154, 504)),
        (504, 371, (378, 504)),
        (300, 200, (336, 504)),
        (5000, 10, (14, 504)),
    ],
)
def test_upper_bound_sizes(width, height, expected):
    """Examples counted with the code of Depth Anything 3; the last one has a side under 7."""
    geometry = plan_geometry(height, width, size=504, fit="upper_bound")
    assert geometry.resized == geometry.network == expected
    assert max(geometry.first) == 504
    tall = plan_geometry(width, height, size=504, fit="upper_bound")
    assert tall.network == expected[::-1]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (90, 61), (37, 300), (504, 371)])
def test_upper_bound_pixels_match_opencv(height, width, seed):
    """Two resizes to uint8, each cubic if a side grows; OpenCV rounds some values by one step."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    size = 252 if height > 400 else 126
    x, (geometry,) = preprocess(torch.from_numpy(image), size=size, fit="upper_bound")
    scale, want = size / max(height, width), image
    first = tuple(max(1, round(side * scale)) for side in (width, height))
    second = tuple(max(14, (side + 7) // 14 * 14) for side in first)
    for sides in (first, second):
        grows = sides[0] > want.shape[1] or sides[1] > want.shape[0]
        rule = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
        if sides != (want.shape[1], want.shape[0]):
            want = cv2.resize(want, sides, interpolation=rule)
    assert geometry.network == second[::-1]
    got = x[0] * x.new_tensor(IMAGENET_STD)[:, None, None]
    got = (got + x.new_tensor(IMAGENET_MEAN)[:, None, None]).permute(1, 2, 0) * 255
    error = (got - torch.from_numpy(want).float()).abs()
    # A step of the first resize, magnified by the overshoot of the second, and one of its own.
    assert error.max() < 3.01
    assert error.mean() < 0.15


def test_upper_bound_takes_floats(seed):
    """Floats are not rounded on the way."""
    image = np.random.default_rng(seed).integers(0, 256, (60, 91, 3), np.uint8)
    one, _ = preprocess(torch.from_numpy(image), size=56, fit="upper_bound")
    floats = torch.from_numpy(image).permute(2, 0, 1) / 255
    two, _ = preprocess(floats, size=56, fit="upper_bound")
    assert 0 < (one - two).abs().max() < 2 / 255 / min(IMAGENET_STD)


def test_pad_sizes_at_random(seed):
    rng = np.random.default_rng(seed)
    for width, height in rng.integers(30, 4000, (300, 2)):
        if max(width / height, height / width) > 5:
            continue
        g = plan_geometry(int(height), int(width))
        scale = 518 / min(width, height)
        assert min(g.resized) == 518
        assert max(g.resized) == round(max(width, height) * scale)
        left, right, top, bottom = g.padding
        assert (right - left, bottom - top) in {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert g.network == (g.resized[0] + top + bottom, g.resized[1] + left + right)
        assert g.network[0] % 14 == g.network[1] % 14 == 0
        assert max(left + right, top + bottom) < 14


@pytest.mark.parametrize("fit", ["pad", "official"])
@pytest.mark.parametrize(("height", "width"), [(500, 10000), (10000, 500), (1, 100000), (7, 9000)])
def test_panoramas_are_scaled_down_with_a_warning(height, width, fit, notices):
    geometry = plan_geometry(height, width, fit=fit)
    assert "scaled down" in notices.text
    tokens = geometry.network[0] * geometry.network[1] // 196 + 1
    assert 0.6 * 8192 < tokens <= 8192  # one row of patches more or less is much here
    assert min(geometry.network) >= 14
    smaller = plan_geometry(height, width, fit=fit, max_tokens=1000)
    assert smaller.network[0] * smaller.network[1] // 196 + 1 <= 1000


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 5), {}, "at least one pixel"),
        ((5, 5), {"fit": "strech"}, "use one of pad, official"),
        ((5, 5), {"size": 7}, "smaller than a patch"),
        ((5, 5), {"max_tokens": 1}, "max_tokens"),
    ],
)
def test_bad_geometry(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plan_geometry(*arguments, **options)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (1333, 777), (60, 50), (518, 518)])
def test_official_pixels_match_opencv(height, width, seed):
    """The official transform in numpy and OpenCV, step by step."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    x, (geometry,) = preprocess(torch.from_numpy(image), fit="official")
    rows, columns = geometry.network
    resized = cv2.resize(
        image.astype(np.float32) / 255, (columns, rows), interpolation=cv2.INTER_CUBIC
    )
    expected = (resized - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert x.shape == (1, 3, rows, columns)
    # 1e-4 on pixel values in 0..1; normalisation divides by 0.22 at least.
    assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1e-4 / min(IMAGENET_STD)


@pytest.mark.parametrize("padding", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (900, 700), (60, 50)])
def test_pad_pixels(height, width, padding, seed):
    image = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    x, (g,) = preprocess(image, padding=padding)
    left, _, top, _ = g.padding
    inner = x[..., top : top + g.resized[0], left : left + g.resized[1]]
    as_float = image.permute(2, 0, 1)[None].float() / 255
    # In float64: PyTorch's own float32 is off by up to 5e-5, as it rounds places to float32.
    expected = F.interpolate(as_float.double(), g.resized, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(inner.double(), (expected - mean) / std, atol=2e-5, rtol=0)
    if left:
        want = {"constant": torch.zeros(()), "replicate": inner[..., 0], "reflect": inner[..., 1]}
        column = x[..., top : top + g.resized[0], left - 1]
        torch.testing.assert_close(column, want[padding].expand_as(column))
    floats, _ = preprocess(as_float[0], padding=padding)
    torch.testing.assert_close(floats, x, atol=2e-5, rtol=0)


@pytest.mark.parametrize("fit", ["pad", "official"])
@pytest.mark.parametrize(("height", "width"), [(480, 643), (91, 70), (518, 518)])
def test_postprocess_undoes_preprocess(height, width, fit):
    """A linear ramp survives the way there and back, borders aside."""
    ramp = torch.linspace(0, 1, width).expand(3, height, width).contiguous()
    x, geometries = preprocess(ramp, fit=fit, mean=(0, 0, 0), std=(1, 1, 1))
    (back,) = postprocess(x[:, 0], geometries)
    assert back.shape == (height, width) and back.dtype == torch.float32
    margin = math.ceil(2 + 2 * width / 518)
    error = (back - ramp[0])[:, margin:-margin].abs().max()
    assert error < 2 / width


def test_batch_and_mixed_sizes():
    a, b = torch.rand(3, 100, 140), torch.rand(3, 200, 280)
    x, geometries = preprocess([a, b], size=140, dtype=torch.bfloat16)
    assert x.shape == (2, 3, 140, 196) and x.dtype == torch.bfloat16
    maps = postprocess(x[:, 0], geometries)
    assert [tuple(m.shape) for m in maps] == [(100, 140), (200, 280)]
    with pytest.raises(ValueError, match="one network size"):
        preprocess([a, torch.rand(3, 140, 100)])
    with pytest.raises(ValueError, match="at least one image"):
        preprocess([])
    with pytest.raises(ValueError, match="the geometry says"):
        postprocess(x[:, 0, :14], geometries)


@pytest.mark.parametrize(
    "image", [torch.zeros(5, 5), torch.zeros(5, 5, 3), torch.zeros(3, 5, 5).int()]
)
def test_bad_image(image):
    with pytest.raises(ValueError, match="preprocess needs uint8"):
        preprocess(image)


def test_pad_and_resize_options():
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert pad(x, (1, 2, 0, 1), mode="replicate")[0, 0, -1].tolist() == [8, 8, 9, 10, 11, 11, 11]
    with pytest.raises(ValueError, match="use mode='replicate'"):
        pad(x, (4, 0, 0, 0), mode="reflect")
    with pytest.raises(ValueError, match="use one of replicate"):
        pad(x, (1, 0, 0, 0), mode="edge")
    corners = resize_bilinear(x, (5, 7), align_corners=True)
    assert corners[0, 0, 0, -1] == 3 and corners[0, 0, -1, -1] == 11


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODES = ["constant", "replicate", "reflect"]


@pytest.fixture
def cpp():
    if _extension.load() is None:
        pytest.skip(_extension.why_missing())
    with use_backend("cpp"):
        yield


def photos(rng, sizes, kind):
    """uint8 (H, W, 3), or float32 (3, H, W): contiguous, or a view of (H, W, 3)."""
    out = []
    for height, width in sizes:
        photo = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if kind != "uint8":
            photo = photo.permute(2, 0, 1) / 255
            photo = photo.contiguous(memory_format=torch.contiguous_format)
            if kind == "interleaved":
                photo = photo.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        out.append(photo)
    return out


def exact(images, **options):
    """`preprocess` by its specification in float64."""
    wide = [
        x.permute(2, 0, 1).double() / 255 if x.dtype == torch.uint8 else x.double() for x in images
    ]
    with use_backend("reference"):
        return preprocess(wide, **{**options, "dtype": torch.float64})


# Photos of several sizes whose shorter side becomes 56, and that share one network size.
SIZES = [(80, 115), (40, 58), (56, 84), (300, 425), (9, 13)]
KINDS = ["uint8", "planar", "interleaved"]


def check_preprocess(got, images, dtype, **options):
    expected, geometries = exact(images, **options)
    x, same = got
    assert same == geometries and x.dtype == dtype
    # Weights in float32 on values up to 1, over a standard deviation of 0.22 at least.
    parity.assert_within(x, expected, steps=2, slack=2e-6 / min(IMAGENET_STD))


@grid(
    {
        "fit, antialias": [("pad", True), ("pad", False), ("official", True)],
        "padding": MODES,
        "dtype": DTYPES,
        "kind": KINDS,
        "channels_last": [False, True],
    }
)
def test_cpp_matches_float64(
    cpp, fit, antialias, padding, dtype, kind, channels_last, rng, poisoned
):
    images = photos(rng, SIZES, kind)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    options = {"size": 56, "fit": fit, "padding": padding, "antialias": antialias}
    got = preprocess(images, dtype=dtype, memory_format=layout, **options)
    assert got[0].is_contiguous(memory_format=layout)
    check_preprocess(got, images, dtype, **options)


def test_cpp_takes_views_odd_dtypes_and_thin_photos(cpp, rng):
    (photo,) = photos(rng, [(90, 120)], "uint8")
    for view in (photo[::2, 1:-3], photo[:, ::3], photo.flip(2)):
        got, _ = preprocess(view, size=28)
        torch.testing.assert_close(got, preprocess(view.contiguous(), size=28)[0])
    floats = photo.permute(2, 0, 1) / 255
    for dtype in (torch.float64, torch.float16):
        got, _ = preprocess(floats.to(dtype), size=28)
        torch.testing.assert_close(got, preprocess(floats.to(dtype).float(), size=28)[0])
    for size in ((1, 40), (40, 1), (1, 1)):
        for kind in KINDS:
            images = photos(rng, [size], kind)
            check_preprocess(
                preprocess(images, size=28, padding="replicate"),
                images, torch.float32, size=28, padding="replicate",
            )  # fmt: skip


def test_cpp_says_what_it_cannot_serve(cpp):
    byte, real = torch.zeros(56, 56, 3, dtype=torch.uint8), torch.zeros(3, 56, 56)
    for images, options, message in (
        ([byte, real], {}, "not both"),
        ([real.clone().requires_grad_()], {}, "no backward"),
        ([byte], {"dtype": torch.float64}, "float64"),
    ):
        with pytest.raises(BackendError, match=message):
            preprocess(images, size=56, **options)
    with pytest.raises(BackendError, match="no backward"):
        postprocess(torch.zeros(1, 56, 56, requires_grad=True), [plan_geometry(60, 60, size=56)])
    # Unasked, the specification serves, and gradients flow.
    assert OPS["preprocess"].backends.keys() >= {"cuda", "cpp", "reference"}


def test_gradient_flows_through_both(rng):
    (photo,) = photos(rng, [(30, 40)], "planar")
    x, geometries = preprocess(photo.requires_grad_(), size=28)
    (disparity,) = postprocess(x[:, 0], geometries)
    disparity.sum().backward()
    assert photo.grad[0].abs().sum() > 0 and photo.grad[1].abs().sum() == 0


def predictions(rng, sizes, size=56, dtype=torch.float32):
    geometries = [plan_geometry(*s, size=size) for s in sizes]
    shape = (len(sizes), *geometries[0].network)
    return torch.from_numpy(rng.random(shape, dtype=np.float32)).to(dtype), geometries


def check_postprocess(got, disparity, geometries, align_corners, error=2e-6):
    with use_backend("reference"):
        expected = postprocess(disparity.double(), geometries, align_corners=align_corners)
    for g, e, geometry in zip(got, expected, geometries, strict=True):
        assert g.shape == geometry.original
        if g.dtype == torch.uint16:
            least, greatest = e.aminmax()
            e = (e - least) / (greatest - least) * 65535
            assert g.to(torch.int32).aminmax() == (0, 65535)
            # Half a step of rounding, and what is before it on both ends of the range.
            assert (g.double() - e).abs().max() <= 0.5 + 4 * 65535 * error
        else:
            assert (g.double() - e).abs().max() <= error


@grid(
    {
        "backend": ["reference", CPP],
        "dtype": DTYPES,
        "align_corners": [False, True],
        "out": [torch.float32, torch.uint16],
    }
)
def test_postprocess_matches_float64(backend, dtype, align_corners, out, rng, poisoned):
    disparity, geometries = predictions(rng, SIZES, dtype=dtype)
    with use_backend(backend):
        maps = postprocess(disparity, geometries, align_corners=align_corners, dtype=out)
    assert all(m.dtype == out for m in maps)
    # PyTorch's float32 rounds places to float32.
    error = 3e-5 if backend == "reference" else 2e-6
    check_postprocess(maps, disparity, geometries, align_corners, error)


@pytest.mark.parametrize("backend", ["reference", CPP])
def test_postprocess_of_constants_views_and_other_dtypes(backend, rng):
    disparity, geometries = predictions(rng, SIZES)
    with use_backend(backend):
        for flat in postprocess(torch.ones_like(disparity), geometries, dtype=torch.uint16):
            assert (flat.to(torch.int32) == 0).all()
        wide = torch.stack([disparity, disparity], -1)[..., 0]
        for a, b in zip(
            postprocess(wide, geometries), postprocess(disparity, geometries), strict=True
        ):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match="not torch"):
        postprocess(disparity, geometries, dtype=torch.int8)


def test_opcheck(cpp, rng):
    (photo,) = photos(rng, [(30, 41)], "planar")
    for channels_last in (False, True):
        torch.library.opcheck(
            torch.ops.dafast.preprocess.default,
            ([photo], [28, 38, 2, 0], [28, 42], list(IMAGENET_MEAN), list(IMAGENET_STD),
             False, True, 1, torch.bfloat16, channels_last),
        )  # fmt: skip
    for dtype in (torch.float32, torch.uint16):
        torch.library.opcheck(
            torch.ops.dafast.postprocess.default,
            (torch.rand(1, 28, 42), [0, 2, 28, 38], [30, 41], False, dtype),
        )


def test_threads_agree(cpp, rng):
    images = photos(rng, [(400, 601), (80, 120)], "uint8")
    results = []
    for count in (1, 2, 5):
        with threads(count):
            x, geometries = preprocess(images, size=56)
            results.append([x, *postprocess(x[:, 0], geometries)])
    for other in results[1:]:
        parity.assert_equal(results[0], other)


@pytest.mark.gpu
@grid(
    {
        "fit": ["pad", "official"],
        "padding": MODES,
        "dtype": DTYPES,
        "kind": KINDS,
        "channels_last": [False, True],
    }
)
def test_gpu_matches_float64(fit, padding, dtype, kind, channels_last, rng):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    images = photos(rng, SIZES * 8, kind)  # more than one launch takes
    layout = torch.channels_last if channels_last else torch.contiguous_format
    options = {"size": 56, "fit": fit, "padding": padding}
    with use_backend("cuda"):
        x, geometries = preprocess(
            [image.cuda() for image in images], dtype=dtype, memory_format=layout, **options
        )
        maps = postprocess(x[:, 0], geometries)
        deep = postprocess(x[:, 0], geometries, dtype=torch.uint16)
    check_preprocess((x.cpu(), geometries), images, dtype, **options)
    for got in (maps, deep):
        check_postprocess([m.cpu() for m in got], x[:, 0].cpu(), geometries, False)


@pytest.mark.gpu
def test_gpu_graph_capture_and_pinned_memory(rng):
    if why := _extension.why_not("cuda"):
        pytest.skip(why)
    (photo,) = photos(rng, [(300, 451)], "uint8")
    pinned, static = photo.pin_memory(), torch.empty_like(photo, device="cuda")
    side = torch.cuda.Stream()
    with use_backend("cuda"), torch.cuda.stream(side):
        static.copy_(pinned, non_blocking=True)
        x, geometries = preprocess(static, size=56)
        expected = [x, *postprocess(x[:, 0], geometries, dtype=torch.uint16)]
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            y, _ = preprocess(static, size=56)
            captured = [y, *postprocess(y[:, 0], geometries, dtype=torch.uint16)]
        graph.replay()
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_writes_into_given_memory(backend, layout, seed):
    photos = [torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8) for _ in range(2)]
    options = {"size": 28, "dtype": torch.bfloat16, "memory_format": layout}
    with use_backend(backend):
        expected, geometries = preprocess(photos, **options)
        out = torch.full_like(expected, torch.nan)
        got, same = preprocess(photos, **options, out=out)
        assert got is out and same == geometries and torch.equal(out, expected)
        for wrong in (out[:1], out.float(), out.mT.contiguous().mT):
            with pytest.raises(ValueError, match="out must be"):
                preprocess(photos, **options, out=wrong)
