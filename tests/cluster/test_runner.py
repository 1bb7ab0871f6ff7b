"""The runner of a cluster, with a Ray that does each task when its result is asked for.

`test_cluster.py` starts a real one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ray = pytest.importorskip("ray", reason="ray is not installed")
pytest.importorskip("ray.exceptions")

# ruff: noqa: E402
from dafast.cluster import runner as runner_module
from dafast.cluster import scoring, workers
from dafast.cluster.connection import ClusterError
from dafast.cluster.runner import LOSSES, RayRunner
from dafast.data.jobs import Outcome
from dafast.data.labeling import LabelReport, label_shards, label_with
from dafast.evaluation import benchmarks
from dafast.evaluation.samples import EvaluationSample
from dafast.evaluation.scoring import Scoring
from dafast.files import DiskFullError
from tests.tiny import TINY
from tests.training import tiny


@dataclasses.dataclass(eq=False)
class Ref:
    """A result that is computed when it is asked for."""

    compute: Callable[[], Any]


class Handle:
    """A remote function, class or actor."""

    def __init__(self, target: Any, fake: FakeRay) -> None:
        self._target, self._fake = target, fake

    def options(self, **options: Any) -> Handle:
        self._fake.options.append(options)
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._target, type):
            self._fake.models.append(self._target(*args, **kwargs))
            return Handle(self._fake.models[-1], self._fake)
        return Ref(lambda: self._target(*args, **kwargs))

    def __getattr__(self, name: str) -> Handle:
        return Handle(getattr(self._target, name), self._fake)


class FakeRay:
    """The functions of Ray that the runner uses.

    Args:
        gpus: Of the node.

    Attributes:
        lose: Called with each kind of result before it is computed ("do_part", "facts",
            "predict"); it may raise what Ray raises.
        waited: What was waited for last.
        dead: Results of actors that were lost.
        models: All actors.
    """

    exceptions = ray.exceptions

    def __init__(self, gpus: float) -> None:
        self.gpus = gpus
        self.lose: Callable[[str], None] = lambda kind: None
        self.connected = True
        self.waited: list[Ref] = []
        self.dead: set[Ref] = set()
        self.models: list[workers.Model] = []
        self.options: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self.cancelled: list[Any] = []

    def is_initialized(self) -> bool:
        return self.connected

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": self.gpus}}, dead]

    def remote(self, target: Any) -> Handle:
        return Handle(target, self)

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list, list]:
        self.waited = self.waited if timeout == 0 else refs
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Ref) -> Any:
        if ref in self.dead:
            raise ray.exceptions.ActorDiedError()
        target = ref.compute.__closure__
        kind = next(
            c.cell_contents._target.__name__ for c in target if isinstance(c.cell_contents, Handle)
        )
        self.lose(kind)
        try:
            return ref.compute()
        except ray.exceptions.RayError as error:
            if kind != "do_part":
                raise
            raise ray.exceptions.RayTaskError(kind, "", error) from None
        except Exception as error:
            raise ray.exceptions.RayTaskError(kind, "", error) from None

    def kill(self, handle: Handle) -> None:
        self.killed.append(handle)

    def cancel(self, ref: Ref, force: bool) -> None:
        self.cancelled.append(ref)


@pytest.fixture(params=[2, 0], ids=["gpus", "processors"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    before = set(threading.enumerate())
    made = FakeRay(request.param)
    for module in (runner_module, workers):
        monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(runner_module, "BUSY_WAIT", 0.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    yield made
    for model in made.models:
        model._thread.shutdown()
    assert set(threading.enumerate()) <= before, "later tests fork this process"


class Adder:
    """A model that adds one."""

    facts = "adds one"

    def __call__(self, images: list[np.ndarray], **options: Any) -> list[np.ndarray]:
        return [image + 1 for image in images]


class Job:
    """Predicts an image of one value for each part; a part may be busy or fail."""

    def __init__(self) -> None:
        self.busy: Counter[int] = Counter()
        self.error: Exception | None = None

    def name(self, part: int) -> str:
        return f"part {part}"

    def do(self, part: int, predict: Any, pool: Executor) -> Outcome:
        if self.error is not None:
            raise self.error
        if self.busy[part]:
            self.busy[part] -= 1
            return Outcome(self.name(part), "busy")
        (image,) = predict([np.array(part)]) if predict else [np.array(part)]
        return Outcome(self.name(part), images=1, facts=int(image))


def run(job: Job, parts: list[int], **options: Any) -> tuple[dict[int, Outcome], list[str]]:
    said: list[str] = []
    with RayRunner("label", Adder, say=said.append, **options) as runner:
        return dict(runner.run(job, parts)), said


def test_every_part_is_done_by_an_actor(fake):
    outcomes, said = run(Job(), [4, 7, 9, 11, 20])
    assert {n: outcome.facts for n, outcome in outcomes.items()} == {
        0: 5, 1: 8, 2: 10, 3: 12, 4: 21,
    }  # fmt: skip
    assert not said and len(fake.killed) == 2, (
        "one actor for each GPU or processor of a living node"
    )
    task = {"max_retries": 0, "num_cpus": 1}
    actor = {"max_restarts": 0, "num_cpus": 1, "max_concurrency": 2}
    assert (task if fake.gpus else actor).items() <= fake.options[0].items()
    assert {"name": "dafast label"}.items() <= fake.options[0 if fake.gpus else -1].items()


def test_a_job_without_a_model_starts_no_actor(fake):
    job = Job()
    job.do = lambda part, predict, pool: Outcome(job.name(part), images=1, facts=part)
    with RayRunner("pack") as runner:
        assert sorted(n for n, _ in runner.run(job, [1, 2, 3])) == [0, 1, 2]
    assert not fake.killed


def test_a_busy_part_is_tried_again(fake):
    job = Job()
    job.busy[2] = 3
    job.busy[3] = 10**6
    outcomes, _ = run(job, [1, 2, 3])
    assert [outcomes[i].state for i in range(3)] == ["written", "written", "busy"]
    assert job.busy[3] == 10**6 - runner_module.BUSY_TRIES - 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.WorkerCrashedError(), "its worker or its node was lost"),
        (ray.exceptions.OutOfMemoryError("full"), "its node ran out of memory"),
        (ray.exceptions.ActorDiedError(), "its model was lost"),
    ],
)
def test_a_lost_part_is_done_again_until_it_counts_as_failed(fake, error, reason):
    left = Counter(do_part=3)

    def lose(kind: str) -> None:
        if left[kind]:
            left[kind] -= 1
            raise error

    fake.lose = lose
    outcomes, said = run(Job(), [1, 2], models=1)
    assert [outcomes[i].facts for i in range(2)] == [2, 3]
    assert len(said) == 3 and all(line.endswith(f"is done again: {reason}") for line in said)

    left["do_part"] = 10**6
    fake.killed.clear()
    outcomes, _ = run(Job(), [1], models=1)
    name, text = outcomes[0].failures[0]
    assert (outcomes[0].state, name) == ("failed", "part 1")
    assert text == f"lost {LOSSES} times, at last because {reason}"
    # A lost model is replaced, any other loss leaves it.
    assert len(fake.killed) == 1 + (LOSSES if reason == "its model was lost" else 0)


def test_an_actor_that_is_lost_during_a_task_is_replaced(fake):
    left = Counter(predict=1) if fake.gpus else Counter(do_part=1)

    def lose(kind: str) -> None:
        if left[kind]:
            left[kind] -= 1
            raise ray.exceptions.ActorDiedError()

    fake.lose = lose
    outcomes, said = run(Job(), [1], models=1)
    assert outcomes[0].facts == 2 and len(said) == 1 and len(fake.killed) == 2


def test_a_part_that_ends_its_actor_does_not_take_others_with_it(fake):
    job = Job()
    do = job.do

    def crash(part: int, predict: Any, pool: Executor) -> Outcome:
        if part == 13:
            fake.dead.update(fake.waited)
            raise ray.exceptions.ActorDiedError()
        return do(part, predict, pool)

    job.do = crash
    outcomes, said = run(job, [13, 2], models=1)
    assert [outcomes[i].state for i in range(2)] == ["failed", "written"]
    assert outcomes[1].facts == 3
    assert sum(line.startswith("part 2 ") for line in said) == LOSSES // 2


def test_models_that_cannot_start(fake):
    def lose(kind: str) -> None:
        if kind == "facts":
            raise ray.exceptions.ActorDiedError()

    fake.lose = lose
    with (
        RayRunner("label", Adder, models=1) as runner,
        pytest.raises(ClusterError, match="started"),
    ):
        runner.facts()
    assert len(fake.killed) == LOSSES

    def fails() -> Any:
        raise ValueError("no such model")

    fake.lose = lambda kind: None
    with RayRunner("label", fails) as runner, pytest.raises(ValueError, match="no such model"):
        runner.facts()


def test_a_run_that_waits_for_models_says_so(fake, monkeypatch):
    monkeypatch.setattr(runner_module, "_SILENCE", -1.0)
    waits = iter((True, False))
    wait = fake.wait
    monkeypatch.setattr(
        fake, "wait", lambda refs, **how: ([], refs) if next(waits, False) else wait(refs, **how)
    )
    said: list[str] = []
    with RayRunner("label", Adder, models=1, say=said.append) as runner:
        runner.facts()
    assert said[0] == "waiting for the cluster: 0 of 1 models are ready, 0 parts are submitted"


def test_models_that_differ_are_refused(fake):
    names = iter(("float32", "bfloat16"))

    def make() -> Any:
        model = Adder()
        model.facts = next(names)
        return model

    with RayRunner("label", make) as runner, pytest.raises(ClusterError, match="differ from node"):
        list(runner.run(Job(), [1]))


def test_an_error_of_the_job_ends_the_run(fake):
    job = Job()
    job.error = KeyError("a fault")
    with pytest.raises(KeyError, match="a fault"):
        run(job, [1, 2, 3, 4])
    assert fake.cancelled, "what was submitted does not go on"
    job.error = DiskFullError("the disk is full")
    outcomes, _ = run(job, [1])
    assert outcomes[0].failures == [("part 1", "the disk is full")]


def test_the_same_command_does_what_an_interrupted_one_left(fake, tmp_path: Path, seed: int):
    photos = tiny.write_shards(tmp_path / "in", 5, 3, seed, labeled=False, broken=range(1, 2))
    shards, predicted, parts = sorted(photos.glob("*.tar")), Counter[str](), Counter[str]()
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()

    class Teacher:
        facts = ""

        def __call__(self, images: list[np.ndarray], **options: Any) -> list[np.ndarray]:
            predicted["images"] += len(images)
            return [image[..., 0] / np.float32(255) for image in images]

    def label() -> LabelReport:
        with RayRunner("label", Teacher) as runner:
            return label_with(runner, shards, there)

    def interrupt(kind: str) -> None:
        parts[kind] += 1
        if parts["do_part"] == 3:
            raise KeyboardInterrupt

    def contents(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.iterdir() if path.suffix != ".lock"]
        return {path.name: path.read_bytes() for path in files}

    fake.lose = interrupt
    with pytest.raises(KeyboardInterrupt):
        label()
    finished = {path: path.stat().st_mtime_ns for path in there.glob("*.tar")}
    assert len(finished) == 2 and fake.cancelled

    fake.lose = lambda kind: None
    before = predicted["images"]
    report = label()
    assert (report.kept, report.shards, report.busy) == (2, 3, 0)
    assert predicted["images"] - before == report.images
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    local = label_shards(Teacher(), shards, here)
    assert report.failures == local.failures and len(local.failures) == 5
    assert contents(there) == contents(here)


def test_a_lost_connection_is_not_made_again(fake):
    job = Job()

    def lose(kind: str) -> None:
        if kind == "do_part":
            fake.connected = False
            raise ConnectionError("the server is gone")

    fake.lose = lose
    with pytest.raises(ConnectionError, match="gone"):
        run(job, [1, 2, 3, 4])
    assert not fake.cancelled and not fake.killed, "each call would connect to any cluster"


def test_scores_are_those_of_one_process(fake, monkeypatch, rng):
    photos = [
        EvaluationSample(
            str(i),
            rng.integers(0, 256, (30, 40, 3), np.uint8),
            rng.uniform(1, 9, (30, 40)).astype(np.float32),
            10.0,
        )
        for i in range(5)
    ]
    opened = [("toy", photos)]
    monkeypatch.setattr(scoring, "open_all", lambda specs: opened)
    monkeypatch.setattr(scoring, "BATCH_IMAGES", 2)
    scoring._opened.cache_clear()
    chosen = Scoring.of(TINY)

    class Model:
        facts = ""

        def __call__(self, images: list[np.ndarray], **options: Any) -> list[np.ndarray]:
            return [image[..., 0] / np.float32(255) + 0.1 for image in images]

    said: list[str] = []
    with RayRunner("eval", Model) as runner:
        got = scoring.evaluate_with(runner, chosen, ["toy"], said.append)

    def predict(images: Any, **options: Any) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in Model()(images)]

    rows = benchmarks.score_rows(predict, photos, "toy", chosen)
    assert got == benchmarks.with_each_photo(*benchmarks.summarize(rows, "toy", chosen))
    assert len(said) == 3
    scoring._opened.cache_clear()
