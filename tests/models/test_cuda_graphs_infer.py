"""`infer` through CUDA graphs, by the fake of `tests/models/fake_graphs.py`."""

import copy

import numpy as np
import pytest
import torch

import dafast
from dafast.models import inference
from tests.models.fake_graphs import FIVE, images, make, photo, predict_batch
from tests.tiny import TINY


@pytest.fixture
def model(made, seed):
    return make(FIVE).optimize()


@pytest.mark.parametrize("flip", [False, True])
def test_infer_reads_the_memory_of_the_graph(flip, model, made):
    photos = [photo(40, 60) for _ in range(5)]
    options = {"size": 28, "max_batch_tokens": 2 * (2 * 3 + 1), "flip": flip}
    plain = copy.deepcopy(model).optimize(cuda_graphs=False)
    wanted = plain.infer(photos, **options)
    got = model.infer(photos, **options)
    # Batches of 2, 2 and 1, and again for the mirror images.
    assert (made[0].captures, made[0].replays) == ((2, 4) if flip else (1, 1))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(got[0], got[1])


def test_one_photo_is_preprocessed_in_the_memory_of_the_graph(model, made, monkeypatch):
    preprocess, places = inference.preprocess, []

    def noted(*args, out=None, **options):
        places.append(out)
        return preprocess(*args, out=out, **options)

    monkeypatch.setattr(inference, "preprocess", noted)
    picture = photo(40, 60)
    results = [model.infer(picture, size=28) for _ in range(4)]
    (graph,) = model._optimized._graphs.values()
    assert [out is graph.x for out in places] == [False, False, True, True]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_infer_results_are_not_the_memory_of_the_graph(model, made):
    """Photos of the network's own size, which no resize copies."""
    photos = [photo(28, 42) for _ in range(2)]
    first = [model.infer(photos[0], size=28, return_tensors=True) for _ in range(3)]
    kept = first[-1].clone()
    model.infer(photos[1], size=28)
    assert torch.equal(first[-1], kept) and made[0].replays == 3


def test_infer_calls_the_hooks_and_the_forward_of_a_subclass(made, seed):
    class Twice(dafast.DepthAnything):
        def forward(self, x, features=False):
            return 2 * super().forward(x, features)

    plain, twice = make(), Twice(TINY).eval()
    twice.load_state_dict(plain.state_dict())
    picture = photo(28, 42)
    for _ in range(3):
        once = plain.infer(picture, size=28)
        np.testing.assert_array_equal(twice.infer(picture, size=28), 2 * once)
    handle = plain.register_forward_hook(lambda module, given, out: out + 1)
    np.testing.assert_allclose(plain.infer(picture, size=28), once + 1, rtol=1e-6)
    handle.remove()
    with pytest.raises(TypeError, match="no sky head"):
        predict_batch(plain, images(), sky=True)
    with pytest.raises(ValueError, match="multiples of 14"):
        predict_batch(plain, images(1, 15, 28))
