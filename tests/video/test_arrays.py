"""Memory of large arrays that serves again."""

from __future__ import annotations

import numpy as np
import torch

from dafast.video.arrays import Recycler


def test_memory_serves_again_only_when_every_view_is_gone():
    arrays = Recycler()
    first = arrays.empty((4, 5), np.float32)
    place = first.ctypes.data
    view = torch.from_numpy(first)[1:].numpy()
    del first
    assert arrays.empty((4, 5), np.float32).ctypes.data != place
    kept = arrays.copy(np.ones((4, 5), np.float32))  # the memory of the array just released
    del view
    again = [arrays.empty((5, 4), np.float32) for _ in range(2)]
    assert place in [array.ctypes.data for array in again]
    for array in again:
        array[:] = 2
    assert (kept == 1).all()


def test_copies_have_the_content_of_views(rng):
    picture = rng.integers(0, 256, (7, 6, 3), np.uint8)
    copy = Recycler().copy(picture[:, ::-1])
    np.testing.assert_array_equal(copy, picture[:, ::-1])
    assert copy.flags.c_contiguous and copy.flags.writeable and copy.dtype == np.uint8
