"""Memory of large arrays that serves again."""

from __future__ import annotations

import numpy as np
import torch

from dafast.video.arrays import Recycler


def test_memory_serves_again_only_when_every_view_is_gone():
    """The views are in a list: pytest may keep what local variables hold, for its explanations."""
    arrays = Recycler()

    def fresh() -> int:
        return arrays.empty((4, 5), np.float32).ctypes.data

    held = [arrays.empty((4, 5), np.float32)]
    place = held[0].ctypes.data
    held[0] = torch.from_numpy(held[0])[1:].numpy()
    other = fresh()
    assert other != place
    kept = arrays.copy(np.ones((4, 5), np.float32))
    assert kept.ctypes.data == other
    held.clear()
    held += [arrays.empty((5, 4), np.float32) for _ in range(2)]
    assert held[0].ctypes.data == place
    for array in held:
        array[:] = 2
    assert (kept == 1).all()


def test_copies_have_the_content_of_views(rng):
    picture = rng.integers(0, 256, (7, 6, 3), np.uint8)
    copy = Recycler().copy(picture[:, ::-1])
    np.testing.assert_array_equal(copy, picture[:, ::-1])
    assert copy.flags.c_contiguous and copy.flags.writeable and copy.dtype == np.uint8
