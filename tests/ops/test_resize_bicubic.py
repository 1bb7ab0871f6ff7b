"""`resize_bicubic` against OpenCV's INTER_CUBIC, both backends."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from dafast.ops import _extension, use_backend
from dafast.ops.resize_bicubic import resize_bicubic, resize_bicubic_reference

# (height, width) -> (height, width)
SIZES = [
    ((300, 400), (518, 686)),
    ((300, 400), (514, 699)),
    ((481, 321), (777, 518)),
    ((518, 518), (518, 518)),
    ((1080, 1920), (518, 924)),
    ((37, 53), (3, 5)),
    ((1, 1), (5, 7)),
    ((1, 9), (4, 4)),
    ((2, 3), (50, 1)),
    ((5, 4), (1, 1)),
    ((3, 1000), (14, 280)),
]


@pytest.fixture(params=["reference", "cpp"])
def backend(request):
    if request.param == "cpp" and _extension.load() is None:
        pytest.skip(_extension.why_missing())
    with use_backend(request.param):
        yield request.param


def opencv(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
    return resized.reshape(*size, -1)


def tolerance(source: tuple[int, int]) -> float:
    # OpenCV's own code rounds coordinates to float32; its IPP build (every x86 wheel) does not.
    # Off x86 the reference is the coarser one, by the spacing of float32 at the largest
    # coordinate times the slope of the kernel in two directions.
    if cv2.ipp.useIPP():
        return 1e-4
    return 1e-4 + 4 * float(np.spacing(np.float32(max(source))))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equals_opencv(source, target, backend, rng):
    image = rng.random((*source, 3), dtype=np.float32)
    expected = opencv(image, target)
    result = resize_bicubic(torch.from_numpy(image).permute(2, 0, 1), target)
    assert result.dtype == torch.float32
    assert result.shape == (3, *target)
    error = np.abs(result.permute(1, 2, 0).numpy() - expected).max()
    assert error <= tolerance(source)


@pytest.mark.parametrize("backend", ["reference", "cpp"], indirect=True)
def test_large_photo(backend, rng):
    # Float32 coordinates would show here: they are off by 3e-4.
    image = rng.random((4000, 6000), dtype=np.float32)
    expected = opencv(image, (518, 777))[..., 0]
    result = resize_bicubic(torch.from_numpy(image)[None], (518, 777))[0].numpy()
    assert np.abs(result - expected).max() <= tolerance(image.shape)


def test_batch_is_the_images_one_by_one(backend, rng):
    images = torch.from_numpy(rng.random((3, 2, 41, 60), dtype=np.float32))
    together = resize_bicubic(images, (33, 90))
    for image, result in zip(images, together, strict=True):
        assert torch.equal(resize_bicubic(image, (33, 90)), result)


def test_uint8_is_the_float_image(backend, rng):
    image = torch.from_numpy(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).permute(2, 0, 1)
    result = resize_bicubic(image, (77, 200))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, resize_bicubic(image.float(), (77, 200)))
    assert result.max() > 255  # the kernel overshoots, and nothing is clamped
    assert result.min() < 0


def test_strides(backend, rng):
    base = torch.from_numpy(rng.random((2, 60, 80, 4), dtype=np.float32))
    views = {
        "channels_last": base.permute(0, 3, 1, 2),
        "every other": base.permute(0, 3, 1, 2)[:, ::2, ::2, 1::3],
        "transposed": base.permute(0, 3, 2, 1),
        "expanded": base[:1, :, :, :1].permute(0, 3, 1, 2).expand(2, 3, 60, 80),
    }
    for name, view in views.items():
        expected = resize_bicubic(view.contiguous(), (29, 44))
        assert torch.equal(resize_bicubic(view, (29, 44)), expected), name


def test_empty_batch(backend):
    assert resize_bicubic(torch.empty(0, 3, 8, 8), (4, 5)).shape == (0, 3, 4, 5)
    assert resize_bicubic(torch.empty(2, 0, 8, 8), (4, 5)).shape == (2, 0, 4, 5)


def test_backends_agree_on_any_size(rng):
    if _extension.load() is None:
        pytest.skip(_extension.why_missing())
    for _ in range(40):
        height, width, *size = (int(n) for n in rng.integers(1, 70, 4))
        image = torch.from_numpy(rng.standard_normal((2, height, width)).astype(np.float32))
        with use_backend("cpp"):
            result = resize_bicubic(image, (size[0], size[1]))
        expected = resize_bicubic_reference(image.double(), (size[0], size[1]))
        torch.testing.assert_close(
            result.double(), expected, atol=2e-6, rtol=1e-5, msg=f"{image.shape} -> {size}"
        )


def test_threads_agree(rng):
    if _extension.load() is None:
        pytest.skip(_extension.why_missing())
    image = torch.from_numpy(rng.random((3, 600, 400), dtype=np.float32))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            with use_backend("cpp"):
                results.append(resize_bicubic(image, (517, 611)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_writes_every_element(backend, rng):
    # Memory that is handed out again still holds NaN where nothing is written.
    for _ in range(3):
        del_me = torch.full((3, 301, 203), float("nan"))
        del del_me
        image = torch.from_numpy(rng.random((3, 57, 91), dtype=np.float32))
        assert resize_bicubic(image, (301, 203)).isfinite().all()


def test_dtypes(rng):
    image = torch.from_numpy(rng.random((3, 20, 30)))
    double = resize_bicubic(image, (31, 17))
    assert double.dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16):
        result = resize_bicubic(image.to(dtype), (31, 17))
        assert result.dtype == torch.float32
        torch.testing.assert_close(
            result.double(), resize_bicubic(image.to(dtype).double(), (31, 17)), atol=1e-6, rtol=0
        )


def test_gradient(rng):
    image = torch.from_numpy(rng.random((1, 5, 6))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize_bicubic(x, (7, 4)), (image,))
    # float32 that needs a gradient must not go to the backend that has none
    image = image.detach().float().requires_grad_()
    resize_bicubic(image, (7, 4)).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_compiles(rng):
    image = torch.from_numpy(rng.random((3, 20, 30), dtype=np.float32))
    compiled = torch.compile(lambda x: resize_bicubic(x, (31, 17)), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), resize_bicubic(image, (31, 17)))


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (torch.zeros(8, 8), (4, 4), r"\(8, 8\)"),
        (torch.zeros(3, 0, 8), (4, 4), r"\(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), (4, 4), "int64"),
        (torch.zeros(3, 8, 8), (0, 4), r"\(0, 4\)"),
        (torch.zeros(3, 8, 8), (4,), r"\(4,\)"),
    ],
)
def test_errors_name_what_was_given(image, size, message):
    with pytest.raises(ValueError, match=message):
        resize_bicubic(image, size)


def test_extension_refuses_what_it_cannot_do():
    if _extension.load() is None:
        pytest.skip(_extension.why_missing())
    op = torch.ops.dafast_C.resize_bicubic
    with pytest.raises(RuntimeError, match="float32 or uint8"):
        op(torch.zeros(1, 3, 8, 8, dtype=torch.float64), 4, 4)
    with pytest.raises(RuntimeError, match="positive"):
        op(torch.zeros(1, 3, 8, 8), 0, 4)
    with pytest.raises(RuntimeError, match="B, C, H, W"):
        op(torch.zeros(3, 8, 8), 4, 4)


def test_custom_op(rng):
    if _extension.load() is None:
        pytest.skip(_extension.why_missing())
    for image in (rng.random((2, 3, 9, 8), dtype=np.float32), np.zeros((1, 1, 4, 4), np.uint8)):
        images = torch.from_numpy(image)
        torch.library.opcheck(torch.ops.dafast.resize_bicubic.default, (images, (5, 7)))
        with use_backend("cpp"):
            expected = resize_bicubic(images, (5, 7))
            torch._dynamo.reset()
            compiled = torch.compile(
                lambda x: resize_bicubic(x, (5, 7)), fullgraph=True, backend="aot_eager"
            )
            assert torch.equal(compiled(images), expected)
