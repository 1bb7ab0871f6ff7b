"""16-bit PNG files, read back by readers that are not ours."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from dafast.data.png16 import encode_png16


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 52), (64, 64)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "extremes"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_read_back(shape: tuple[int, int], kind: str, order: str, rng: np.random.Generator):
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = {
        "noise": rng.integers(0, 65536, shape),
        "smooth": (300 * x + 700 * y + rng.integers(9)) % 65536,
        "extremes": rng.choice([0, 255, 256, 65535], shape),
    }[kind].astype(np.uint16)
    given = np.asfortranarray(values) if order == "F" else values
    if order == "strided":
        given = values.repeat(2, 0).repeat(3, 1)[::2, ::3]
    file = encode_png16(given)
    with Image.open(io.BytesIO(file)) as picture:
        picture.verify()  # the checksums
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.mode == "I;16" and np.array_equal(np.asarray(picture), values)
    decoded = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == np.uint16 and np.array_equal(decoded, values)
    assert encode_png16(values) == file


def test_smooth_maps_are_no_larger_than_pillows(rng: np.random.Generator) -> None:
    y, x = np.mgrid[:200, :300] / 300
    a, b, c = rng.uniform(0.2, 1.0, 3)
    values = 20000 * (1 + a * y + b * x / 2 + 0.1 * np.sin(20 * c * x)) + rng.normal(0, 20, x.shape)
    code = values.astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(code).save(buffer, "PNG", compress_level=3)
    assert len(encode_png16(code)) < 1.1 * buffer.tell()
