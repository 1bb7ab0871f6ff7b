"""`forward_warp`: shifts to the pixel, the depth test, the fill, and C++ against the reference."""

from __future__ import annotations

import pytest
import torch

from dafast.ops import forward_warp, forward_warp_reference, use_backend
from tests.instruction_sets import CPP, needs_extension, threads
from tests.pairwise import grid

BACKENDS = ["reference", CPP]


@pytest.fixture(params=BACKENDS)
def backend(request, poisoned):
    with use_backend(request.param):
        yield request.param


def flow_of(order, x=1.0, y=0.0):
    """A camera that moves by (x, y) pixels per unit of the order."""
    return torch.cat([order * x, order * y], 1)


def two_planes(shift, height=24, width=40):
    """A square that moves by `shift` pixels in front of a plane that stays."""
    image = torch.rand(1, 3, height, width)
    order = torch.zeros(1, 1, height, width)
    order[..., 6:18, 12:22] = 1.0
    return image, order * shift, order


@pytest.mark.parametrize("shift", [-12, -3, 1, 7, 18])
def test_two_planes_shift_by_whole_pixels(backend, shift, seed):
    image, order, near = two_planes(abs(shift))
    flow = flow_of(near, shift)
    out, holes = forward_warp(image, flow, order)
    square = image[..., 6:18, 12:22]
    moved = torch.zeros_like(near, dtype=torch.bool)
    moved[..., 6:18, 12 + shift : 22 + shift] = True
    assert torch.equal(out[..., 6:18, 12 + shift : 22 + shift], square)
    assert torch.equal(holes, (near > 0) & ~moved)
    still = ~holes & ~moved
    assert torch.equal(out[still.expand_as(out)], image[still.expand_as(image)])


def test_no_flow_is_the_identity(backend, seed):
    image, order = torch.randn(2, 3, 9, 13), torch.randn(2, 1, 9, 13)
    out, holes = forward_warp(image, torch.zeros(2, 2, 9, 13), order)
    assert torch.equal(out, image) and not holes.any()


def test_a_fraction_of_a_pixel_is_linear(backend, seed):
    image = torch.rand(1, 2, 5, 8)
    out, _ = forward_warp(image, torch.full((1, 2, 5, 8), 0.25), torch.zeros(1, 1, 5, 8))
    rows = 0.75 * image[..., 1:, :] + 0.25 * image[..., :-1, :]
    wanted = 0.75 * rows[..., 1:] + 0.25 * rows[..., :-1]
    torch.testing.assert_close(out[..., 1:, 1:], wanted)


def test_holes_take_the_background(backend):
    """The square is 1, the plane behind it 0.25: the hole shows nothing of the square."""
    _, order, near = two_planes(8)
    image = torch.where(near > 0, 1.0, 0.25).expand(1, 3, -1, -1).contiguous()
    out, holes = forward_warp(image, flow_of(near, 8), order)
    assert holes.sum() == 8 * 12
    assert (out[holes.expand_as(out)] == 0.25).all()


def test_nothing_stays_empty(backend, seed):
    """Not even where one pixel is left, and neither its row nor its column reaches the corner."""
    flow = torch.full((1, 2, 12, 17), 100.0)
    flow[..., 3, 5] = 0
    image = torch.rand(1, 3, 12, 17)
    out, holes = forward_warp(image, flow, torch.randn(1, 1, 12, 17))
    assert holes.sum() == 12 * 17 - 1
    torch.testing.assert_close(out, image[..., 3:4, 5:6].expand_as(out))


def test_a_magnified_surface_has_no_holes(backend, seed):
    """A dolly towards a plane: 1.9 times as large."""
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(33.0), indexing="ij")
    flow = torch.stack([0.9 * (columns - 16), 0.9 * (rows - 10)])[None]
    image = torch.rand(1, 1, 21, 33)
    _, holes = forward_warp(image, flow, torch.zeros(1, 1, 21, 33))
    assert not holes.any()


def test_unusable_pixels_are_left_out(backend, seed):
    image, flow, order = torch.rand(1, 1, 6, 9), torch.zeros(1, 2, 6, 9), torch.zeros(1, 1, 6, 9)
    flow[0, 0, 1, 1], flow[0, 1, 2, 2], flow[0, 0, 3, 3] = float("nan"), float("inf"), 1e30
    order[0, 0, 4, 4], order[0, 0, 5, 5] = float("nan"), float("inf")
    out, holes = forward_warp(image, flow, order)
    assert holes[0, 0].nonzero().tolist() == [[i, i] for i in range(1, 6)]
    assert out.isfinite().all()


def test_all_pixels_leave(backend):
    out, holes = forward_warp(
        torch.ones(1, 3, 4, 5), torch.full((1, 2, 4, 5), 50.0), torch.zeros(1, 1, 4, 5)
    )
    assert holes.all() and not out.any()


@needs_extension
@grid(
    {
        "shape": [(1, 3, 40, 57), (3, 1, 7, 64), (1, 4, 1, 9), (2, 3, 33, 1), (0, 3, 4, 5)],
        "size": [0.4, 3.0, 25.0],
        "tolerance": [0.0, 1.0],
        "layout": ["contiguous", "channels_last", "expanded"],
    }
)
def test_cpp_matches_the_reference(shape, size, tolerance, layout, poisoned):
    batch, _, height, width = shape
    image = torch.rand(shape)
    order = size * torch.rand(batch, 1, height, width)
    if layout == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout == "expanded":
        order = order[..., :1].expand(-1, -1, -1, width)
    flow = flow_of(order, 1.3, -0.7) + 0.2 * torch.randn(batch, 2, height, width)
    exact, exact_holes = forward_warp_reference(image.double(), flow, order, tolerance)
    with use_backend("cpp"):
        out, holes = forward_warp(image, flow, order, tolerance)
        again = []
        for count in (1, 3):
            with threads(count):
                again.append(forward_warp(image, flow, order, tolerance)[0])
    assert torch.equal(holes, exact_holes)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(again[0], out) and torch.equal(again[1], out)


@needs_extension
def test_opcheck_and_compile(seed):
    image, order = torch.rand(1, 3, 9, 8), 3 * torch.rand(1, 1, 9, 8)
    flow = flow_of(order)
    torch.library.opcheck(torch.ops.dafast.forward_warp.default, (image, flow, order, 1.0))
    with use_backend("cpp"), torch.no_grad():
        compiled = torch.compile(forward_warp, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(image, flow, order)[0], forward_warp(image, flow, order)[0])


@pytest.mark.slow
def test_gradient_of_the_image(seed):
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    order = 2 * torch.rand(1, 1, 5, 6)
    assert torch.autograd.gradcheck(
        lambda x: forward_warp_reference(x, flow_of(order), order)[0], [image]
    )


@pytest.mark.parametrize(
    ("image", "flow", "order", "message"),
    [
        ((3, 4, 5), (1, 2, 4, 5), (1, 1, 4, 5), r"\(B, C, H, W\)"),
        ((1, 3, 0, 5), (1, 2, 0, 5), (1, 1, 0, 5), "H and W > 0"),
        ((1, 3, 4, 5), (1, 1, 4, 5), (1, 1, 4, 5), "flow must be"),
        ((1, 3, 4, 5), (1, 2, 4, 5), (2, 1, 4, 5), "order must be"),
    ],
)
def test_errors_name_what_was_given(image, flow, order, message):
    with pytest.raises(ValueError, match=message):
        forward_warp(torch.zeros(image), torch.zeros(flow), torch.zeros(order))


def test_errors_of_dtype_and_tolerance():
    maps = torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5)
    with pytest.raises(ValueError, match="uint8"):
        forward_warp(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), *maps)
    with pytest.raises(ValueError, match="tolerance"):
        forward_warp(torch.zeros(1, 3, 4, 5), *maps, tolerance=-1.0)
