"""The HTTP application over a pool without processes: limits, errors, what it says of itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from dafast.geometry import FITS
from dafast.serve import ServerSettings, create_app
from dafast.serve import app as module
from dafast.serve.encoding import FORMATS
from dafast.serve.jobs import Answer, refuse
from tests.serve.fakes import FakePool


def good(job: Any) -> Answer:
    return Answer(200, b"file of " + job.data, {"X-Depth-Kind": "disparity"})


@contextmanager
def client_of(
    monkeypatch: pytest.MonkeyPatch, reply: Callable[[Any], Answer | None] = good, **settings: Any
) -> Iterator[tuple[TestClient, FakePool]]:
    pool = FakePool(reply)
    monkeypatch.setattr(module, "Pool", lambda settings, on_batch: pool)
    with TestClient(create_app(ServerSettings(**settings))) as client:
        yield client, pool


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with client_of(monkeypatch, models=("nano", "v2-vits")) as (client, _):
        yield client


@pytest.fixture(scope="module")
def page() -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch, client_of(patch, page=True) as (client, _):
        yield client


@pytest.mark.parametrize("kind", ["raw", "form", "form without a name"])
def test_a_picture_arrives_in_each_kind_of_body(client: TestClient, kind: str) -> None:
    if kind == "raw":
        answer = client.post("/v1/depth", content=b"photo")
    else:
        name = "a.jpg" if kind == "form" else "b"
        answer = client.post("/v1/depth", files={"file": (name, b"photo")})
    assert answer.status_code == 200
    assert answer.content == b"file of photo"
    assert answer.headers["x-depth-kind"] == "disparity"


@pytest.mark.parametrize("name", FORMATS)
def test_the_answer_has_the_media_type_of_its_format(client: TestClient, name: str) -> None:
    answer = client.post("/v1/depth", params={"format": name}, content=b"photo")
    assert answer.headers["content-type"] == FORMATS[name]
    suffix = "png" if name in ("png16", "color", "gray") else name
    assert f"depth.{suffix}" in answer.headers["content-disposition"]


def test_every_fit_of_infer_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch) as (client, pool):
        for fit in FITS:
            assert client.post("/v1/depth", params={"fit": fit}, content=b"x").status_code == 200
    assert [job.options.fit for job in pool.jobs] == list(FITS)


def test_options_reach_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, models=("nano", "v2-vits")) as (client, pool):
        query = dict(model="v2-vits", size=98, fit="official", fov=60.5, palette="gray")
        assert client.post("/v1/depth", params=query, content=b"x").status_code == 200
        assert client.post("/v1/depth", content=b"x").status_code == 200
    first, second = pool.jobs
    assert first.options == module.PredictOptions("v2-vits", 98, "official", 60.5)
    assert (first.palette, first.format) == ("gray", "png16")
    assert second.options == module.PredictOptions("nano")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"format": "bmp"}, "png16"),
        ({"size": "3"}, "14"),
        ({"size": "many"}, "integer"),
        ({"fov": "200"}, "180"),
        ({"fov": "nan"}, "180"),
        ({"fit": "stretch"}, "official"),
        ({"model": "vitg"}, "this server has nano, v2-vits"),
        ({"palette": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_parameter_is_named(client: TestClient, query: dict, message: str) -> None:
    answer = client.post("/v1/depth", params=query, content=b"x")
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith(f"{next(iter(query))}: ") and message in detail


@pytest.mark.parametrize(
    ("method", "path", "takes"),
    [
        ("POST", "/v1/depth", "takes format, model, size, fit, fov, palette"),
        ("POST", "/v1/video", "takes model, layout, stabilize, palette"),
        *(
            ("GET", path, "takes no parameters")
            for path in (
                *("/v1/models", "/healthz", "/readyz", "/metrics", "/docs", "/", "/page/main.js"),
                *("/v1/video/x", "/v1/video/x/result"),
            )
        ),
        ("DELETE", "/v1/video/x", "takes no parameters"),
    ],
)
def test_unknown_parameters_are_refused(
    page: TestClient, method: str, path: str, takes: str
) -> None:
    answer = page.request(method, path, params={"fromat": "png16"})
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith("fromat: unknown parameter; ") and detail.endswith(takes)


def test_a_parameter_is_given_once(client: TestClient) -> None:
    answer = client.post("/v1/depth?size=98&size=42", content=b"x")
    assert answer.status_code == 422
    assert answer.json() == {"detail": "size: given 2 times; pass it once"}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b""}, 422, "empty"),
        ({"json": {"url": "https://example.org/a.jpg"}}, 403, "no URLs"),
        ({"json": {"link": "https://example.org/a.jpg"}}, 422, "url"),
        ({"json": [1]}, 422, "url"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "not JSON"),
        ({"content": b"[" * 9000, "headers": {"content-type": "application/json"}}, 422, "JSON"),
        ({"files": {"a": ("a", b"1"), "b": ("b", b"2")}}, 422, "2 files"),
        ({"files": {"a": ("a", b"")}}, 422, "empty"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "form"),
        ({"content": b"x" * 10001}, 413, "10000 bytes"),
    ],
)
def test_a_wrong_body_is_refused(
    monkeypatch: pytest.MonkeyPatch, request_: dict, status: int, message: str
) -> None:
    with client_of(monkeypatch, max_bytes=10000) as (client, pool):
        answer = client.post("/v1/depth", **request_)
    assert (answer.status_code, pool.jobs) == (status, [])
    assert message in answer.json()["detail"]


def test_a_body_without_a_length_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, max_bytes=100) as (client, _):
        parts = (b"x" * 60 for _ in range(2))
        assert client.post("/v1/depth", content=parts).status_code == 413


@pytest.mark.parametrize("path", ["/v1/depth", "/v1/models", "/metrics"])
def test_the_token_is_required(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    with client_of(monkeypatch, token="geheim ü") as (client, pool):
        method = "POST" if path == "/v1/depth" else "GET"
        for header in ({}, {"authorization": "Bearer other"}, {"authorization": "geheim"}):
            answer = client.request(method, path, headers=header)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert pool.jobs == []
        assert client.get("/healthz").status_code == 200


def test_the_right_token_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, token="secret") as (client, _):
        header = {"authorization": "bearer secret"}
        assert client.post("/v1/depth", content=b"x", headers=header).status_code == 200


def test_errors_of_the_worker_keep_their_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (413, 415, 422, 500):
        with client_of(monkeypatch, lambda job: refuse(status, "why")) as (client, _):  # noqa: B023
            answer = client.post("/v1/depth", content=b"x")
            assert (answer.status_code, answer.json()) == (status, {"detail": "why"})


def test_a_request_without_an_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(job: Any) -> None:
        """The body has arrived: only the wait for the answer has the short limit."""
        server.settings = dataclasses.replace(server.settings, timeout=0.05)

    with client_of(monkeypatch, leave) as (client, pool):
        server = client.app.state.server
        assert client.post("/v1/depth", content=b"x").status_code == 504
        assert pool.cancelled[0].future.cancelled()
        assert server.admitted == 0


async def call(app: Any, messages: list[Any], on_empty: Callable[[], Any]) -> list[dict]:
    """Calls an ASGI application; `on_empty` is awaited when it wants more than the messages."""
    sent: list[dict] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await on_empty()

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/depth",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("localhost", 80),
        "http_version": "1.1",
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent


def body(data: bytes, more: bool = False) -> dict:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_client_that_hangs_up_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, lambda job: None, queue=1) as (client, pool):
        server = client.app.state.server

        async def hang_up() -> dict:
            assert server.admitted == 1
            return {"type": "http.disconnect"}

        sent = asyncio.run(call(client.app, [body(b"x")], hang_up))
        assert sent[0]["status"] == 499  # after the timeout it is 504
        assert pool.cancelled[0].future.cancelled()
        assert server.admitted == 0
        asyncio.run(call(client.app, [body(b"x", True)], hang_up))  # within the body
        assert (server.admitted, len(pool.jobs)) == (0, 1)


def test_a_slow_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.sleep(600)

    with client_of(monkeypatch, timeout=0.05) as (client, pool):
        sent = asyncio.run(call(client.app, [body(b"x", True)], never))
        assert sent[0]["status"] == 408
        assert (client.app.state.server.admitted, pool.jobs) == (0, [])


def test_a_full_queue_asks_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, lambda job: None, queue=1) as (client, pool):
        server = client.app.state.server

        async def both() -> list[dict]:
            waiting: asyncio.Event = asyncio.Event()
            first = asyncio.ensure_future(call(client.app, [body(b"x")], waiting.wait))
            while not pool.queue:
                await asyncio.sleep(0)
            refused = await call(client.app, [body(b"x")], waiting.wait)
            pool.queue[0].answer(Answer(200, b""))
            accepted = await first
            return [accepted[0], refused[0]]

        accepted, refused = asyncio.run(both())
        assert (accepted["status"], refused["status"]) == (200, 503)
        assert int(dict(refused["headers"])[b"retry-after"]) >= 1
        assert server.admitted == 0
        metrics = client.get("/metrics").text
        assert 'dafast_requests_total{path="/v1/depth",status="503"} 1.0' in metrics


def test_requests_are_counted_by_route(client: TestClient) -> None:
    for _ in range(2):
        client.get("/healthz")
    for name in ("a", "b"):  # no label for each job
        client.get(f"/v1/video/{name}")
        client.get(f"/nowhere/{name}")
    client.put("/v1/depth")
    counted = {
        line.partition(" ")[0].removeprefix("dafast_requests_total"): float(line.split()[-1])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("dafast_requests_total")
    }
    assert counted == {
        '{path="/healthz",status="200"}': 2,
        '{path="/v1/video/{name}",status="404"}': 2,
        '{path="other",status="404"}': 2,
        '{path="/v1/depth",status="405"}': 1,
    }


def test_readiness_follows_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch) as (client, pool):
        assert client.get("/readyz").status_code == 200
        pool.ready, pool.problem = False, "no such model"
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "no such model")
        assert client.get("/healthz").status_code == 200


def test_models_are_listed_with_license_and_kind(client: TestClient) -> None:
    nano, small = client.get("/v1/models").json()
    assert (nano["id"], nano["default"], nano["kind"]) == ("nano", True, "disparity")
    assert (small["id"], small["default"], small["license"]) == ("v2-vits", False, "Apache-2.0")


def test_other_pages_need_cors(monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"origin": "https://a.example"}
    with client_of(monkeypatch) as (client, _):
        answer = client.post("/v1/depth", content=b"x", headers=header)
        assert "access-control-allow-origin" not in answer.headers
    with client_of(monkeypatch, cors_origins=("https://a.example",)) as (client, _):
        answer = client.post("/v1/depth", content=b"x", headers=header)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        for method in ("POST", "DELETE"):  # of a photo, and of a video that is done
            asked = {"access-control-request-method": method, **header}
            assert client.options("/v1/video/x", headers=asked).status_code == 200
        answer = client.get("/v1/models", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_the_interface_describes_itself(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    paths = {"/v1/depth", "/v1/models", "/healthz", "/readyz", "/v1/video", "/v1/video/{name}"}
    assert set(schema["paths"]) == {*paths, "/v1/video/{name}/result"}
    operation = schema["paths"]["/v1/depth"]["post"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names >= {"format", "model", "size", "fit", "fov", "palette"}
    (choices,) = (p["schema"]["enum"] for p in operation["parameters"] if p["name"] == "format")
    assert choices == list(FORMATS)
    assert set(operation["requestBody"]["content"]) >= {"multipart/form-data", "application/json"}
    assert {"200", "401", "413", "415", "503"} <= set(operation["responses"])
    for status, answer in operation["responses"].items():
        example = answer["content"]["application/json"]["example"]
        assert ("data" if status == "200" else "detail") in example
    json.dumps(schema)


@pytest.mark.parametrize(
    ("field", "value"),
    [("models", ()), ("queue", 0), ("timeout", 0.0), ("timeout", float("nan")), ("batch_wait", -1)],
)
def test_wrong_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        ServerSettings(**{field: value})
