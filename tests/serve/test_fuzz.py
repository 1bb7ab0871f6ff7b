"""Requests made at random: documented answers, and nothing left behind. Run with -m exhaustive.

The network is tiny and a request waits for no others, so that 10,000 requests take minutes.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dafast import DepthAnything
from dafast.serve import ServerSettings
from dafast.serve.app import _ERRORS
from dafast.serve.encoding import FORMATS
from tests.serve.running import Running
from tests.tiny import TINY

pytestmark = pytest.mark.exhaustive
REQUESTS = 10_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tiny = tmp_path_factory.mktemp("model")
    DepthAnything(TINY).save_pretrained(tiny)
    settings = ServerSettings(
        models=(str(tiny), "nano"),
        dtype="float32",
        device="cpu",
        max_pixels=10_000,
        max_bytes=20_000,
        allow_urls="public",
        videos=1000,  # a full queue would answer 503
        workers=2,
        batch_wait=0,
    )
    server = Running(settings)
    try:
        server.wait()
        yield server
    finally:
        server.close()


def picture(width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(width + height).integers(0, 256, (height, width, 3))
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


PICTURES = [
    picture(*size, kind)
    for size in ((1, 1), (7, 90), (60, 40), (99, 99), (400, 2))
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff")
]


def test_ten_thousand_requests(running: Running, run_seed: int) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    words = st.sampled_from(["", "nano", "42", "-1", "1e9", "nan", "png16", "é", "a" * 300])
    query = st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from(list(FORMATS)) | words,
            "size": st.integers(-10, 200).map(str) | words,
            "fit": st.sampled_from(["pad", "official", "upper_bound"]) | words,
            "fov": st.floats(-10, 200).map(str) | words,
            "palette": st.sampled_from(["gray", "turbo"]) | words,
            "model": words,
            "other": words,
        },
    )

    @st.composite
    def damaged(draw: Any) -> bytes:
        data = bytearray(draw(st.sampled_from(PICTURES)))
        for _ in range(draw(st.integers(0, 4))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data[: draw(st.integers(0, len(data))) if draw(st.booleans()) else None])

    body = damaged() | st.binary(max_size=300) | st.sampled_from([b"x" * 20_001, b'{"url": 1}'])
    kinds = st.sampled_from(
        [
            *(
                "",
                "image/png",
                "application/octet-stream",
                "application/json",
                "multipart/form-data",
            ),
            *("multipart/form-data; boundary=x", "a/b; c", ";", "application/json; charset=utf-16"),
        ]
    )
    statuses = []

    @hypothesis.settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(run_seed)
    @hypothesis.given(query, body, kinds, st.sampled_from(["raw", "raw", "form"]))
    def send(query: dict, body: bytes, kind: str, how: str) -> None:
        if how == "form":
            answer = running.client.post("/v1/depth", params=query, files={"file": ("a", body)})
        else:
            headers = {"content-type": kind.encode()} if kind else {}
            answer = running.client.post("/v1/depth", params=query, content=body, headers=headers)
        statuses.append(answer.status_code)
        assert answer.status_code in {200, *_ERRORS} - {500, 504}, answer.text
        if answer.status_code == 200:
            assert answer.headers["x-depth-kind"] == "disparity"
        else:
            assert answer.json()["detail"]

    send()
    server = running.app.state.server
    assert len(statuses) >= REQUESTS and statuses.count(200) > REQUESTS / 50
    assert (server.admitted, len(server.pool.queue), server.pool.restarts) == (0, 0, 0)
    assert running.client.post("/v1/depth", content=PICTURES[2]).status_code == 200


def test_schemathesis_finds_nothing(running: Running) -> None:
    """The answers are those that the OpenAPI description promises.

    A schema cannot describe which bytes are a picture, nor that 3D needs a camera, so requests that
    fit the schema may be refused.
    """
    schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schemathesis.serializer.alias("video/*", "application/octet-stream")
    schema = schemathesis.openapi.from_url(f"{running.address}/openapi.json")
    checked = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=150,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                case.call_and_validate(timeout=120, excluded_checks=[positive_data_acceptance])

            with suppress(Unsatisfiable):  # a route without parameters has no wrong ones
                check()
                checked.add((operation.label, mode))
    posts = ("POST /v1/depth", "POST /v1/video")
    assert checked >= {(post, mode) for post in posts for mode in schemathesis.GenerationMode}
    assert running.pool.restarts == 0
