"""Writes a synthetic data set as WebDataset tar shards."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import multiprocessing as mp
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from dafast._version import __version__
from dafast.files import explain, explain_kind, remove_leftovers, whole_file, write_file
from dafast.optional import MissingPackageError
from dafast.synthetic.render import require_embree
from dafast.synthetic.sample import HELD_OUT_SEED, KINDS, SyntheticSample, render_scene
from dafast.synthetic.textures import texture_digest
from dafast.synthetic.worlds import open_library

DESCRIPTION = "synthetic.json"
"""File next to the shards with everything that, with its number, determines a scene."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class FileTask(Protocol):
    """One file or folder of a set, written by one process, with the scenes seed + first, ..."""

    @property
    def path(self) -> Path: ...
    @property
    def first(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def seed(self) -> int: ...

    def write(self) -> tuple[str, int]:
        """Writes it; returns its name and the number of its scenes."""


@dataclass(frozen=True)
class _ShardTask:
    path: Path
    first: int
    count: int
    seed: int
    size: tuple[int, int] | None
    textures: str | None
    kinds: tuple[str, ...] | None = None
    worlds: str | None = None

    def write(self) -> tuple[str, int]:
        """Writes the shard; returns its name and the number of its scenes."""
        return _write_shard(self)


def encode(sample: SyntheticSample) -> dict[str, bytes]:
    """The members of one sample: ``jpg``, ``disparity.png`` (16 bit), ``classes.png``, ``json``."""
    quality = int(np.random.default_rng([271828, sample.seed]).integers(80, 98))
    jpg, png, classes = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(sample.image).save(jpg, "JPEG", quality=quality)
    disparity = sample.disparity
    top = float(disparity.max())
    code = np.round(disparity.astype(np.float64) / max(top, 1e-12) * 65535).astype(np.uint16)
    Image.fromarray(code).save(png, "PNG", compress_level=1)
    Image.fromarray(sample.classes).save(classes, "PNG")
    meta = {
        "seed": sample.seed, "kind": sample.kind, "disparity_max": top,
        "disparity_unit": "1/metre",
        "fx": sample.fx, "fy": sample.fy, "cx": sample.cx, "cy": sample.cy,
    }  # fmt: skip
    return {
        "jpg": jpg.getvalue(),
        "disparity.png": png.getvalue(),
        "classes.png": classes.getvalue(),
        "json": json.dumps(meta).encode(),
    }


def _render(task: _ShardTask, seed: int) -> SyntheticSample:
    if task.worlds:
        return open_library(task.worlds).render(seed, size=task.size, textures=task.textures)
    kind = task.kinds[seed % len(task.kinds)] if task.kinds else None
    return render_scene(seed, size=task.size, kind=kind, textures=task.textures)


def _write_shard(task: _ShardTask) -> tuple[str, int]:
    """Writes one shard."""
    with (
        whole_file(task.path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in range(task.first, task.first + task.count):
            seed = task.seed + index
            try:
                scene = _render(task, seed)
                members = encode(scene)
            except MissingPackageError:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"scene with seed {seed} failed: {explain_kind(error)}"
                ) from error
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{index:08d}.{suffix}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    return task.path.name, task.count


def write_shards(
    out: str | Path,
    scenes: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    shard_size: int = 100,
    size: tuple[int, int] | None = None,
    textures: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    worlds: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Render ``scenes`` scenes with the seeds seed, seed + 1, ... into tar shards.

    Shards are named ``synthetic-000000.tar`` and so on; sample ``%08d`` has the members ``.jpg``,
    ``.disparity.png`` (uint16, disparity = value / 65535 * disparity_max; 0 is sky),
    ``.classes.png`` (uint8, index into ``CLASSES``) and ``.json`` (seed, kind, disparity_max in
    1/m, fx, fy, cx, cy in pixels). A shard appears under its name
    only when it is finished; a second run skips finished shards. The same arguments give the same
    bytes on the same machine for any number of workers. ``synthetic.json`` holds what defines the
    set; a folder with shards but without this file is accepted.

    Args:
        out: the folder, created if missing.
        scenes: how many images.
        seed: seed of the first image; training stays below ``HELD_OUT_SEED``.
        workers: processes; None takes one per usable core. No two share a shard.
        shard_size: images in a shard; the images themselves do not depend on it.
        size: (width, height) of every image; None draws one per image.
        textures: a folder of further photographs.
        kinds: the kinds of scenes that take turns; None draws among all of ``KINDS`` by weight.
        worlds: a folder with maps of games (`dafast.synthetic.worlds`), which are shown instead of
            procedural scenes.
        progress: print a line per finished shard to stderr.

    Raises:
        MissingPackageError: embreex or scikit-image is missing.
        RuntimeError: a scene failed; the message names its seed.
        FileNotFoundError: ``textures`` is no folder with pictures, or ``worlds`` none with maps.
        ValueError: kinds together with worlds, scenes or shard_size below 1, a negative seed, an
            unknown kind, seeds on both sides of ``HELD_OUT_SEED``, or a folder that holds scenes of
            another set or shards of another size.
    """
    _check_arguments(scenes, seed, shard_size, kinds)
    if kinds and worlds:
        raise ValueError("worlds have no kinds: give kinds or worlds, not both")
    description = {
        "seed": seed,
        "size": size and list(size),
        "textures": texture_digest(textures),
        "version": __version__,
        "kinds": list(kinds) if kinds else None,
        "worlds": open_library(os.path.abspath(worlds)).digest if worlds else None,
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    _check_description(folder, description)
    present = _scenes_by_shard(folder, seed, shard_size)
    texture_folder = None if textures is None else os.path.abspath(textures)
    tasks = [
        _ShardTask(
            folder / f"synthetic-{k:06d}.tar",
            start,
            min(shard_size, scenes - start),
            seed,
            size,
            texture_folder,
            tuple(kinds) if kinds else None,
            os.path.abspath(worlds) if worlds else None,
        )
        for k, start in enumerate(range(0, scenes, shard_size))
    ]
    todo = [t for t in tasks if present.get(t.path.name, 0) < t.count]
    if todo:
        require_embree()
    write_all(
        todo, folder, workers, FileProgress(scenes, scenes - sum(t.count for t in todo), progress)
    )


def write_all(
    todo: Sequence[FileTask], folder: Path, workers: int | None, progress: FileProgress
) -> None:
    """Runs tasks that write into a folder, in processes if ``workers`` allows several.

    Raises:
        RuntimeError: a task failed, or a worker died.
    """
    n = min(workers or _cores(), len(todo))
    with _sigterm_unwinds():
        try:
            if n <= 1:
                for task in todo:
                    progress.add(*task.write())
            else:
                for result in _run_parallel(todo, n):
                    progress.add(*result)
        finally:
            remove_leftovers(folder)


def _check_arguments(scenes: int, seed: int, shard_size: int, kinds: Sequence[str] | None) -> None:
    if scenes < 1 or shard_size < 1 or seed < 0:
        raise ValueError(
            f"need scenes >= 1, shard_size >= 1, seed >= 0: {scenes}, {shard_size}, {seed}"
        )
    if seed < HELD_OUT_SEED < seed + scenes:
        raise ValueError(
            f"seeds {seed} to {seed + scenes - 1} mix training with the held-out scenes from "
            f"{HELD_OUT_SEED} on; start lower, or at {HELD_OUT_SEED} or above for held-out ones"
        )
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")


class FileProgress:
    """Prints a line per finished file to stderr.

    Args:
        scenes: how many there will be.
        done: how many there are already.
        shown: whether to print.
        unit: what is counted.
    """

    def __init__(self, scenes: int, done: int, shown: bool, unit: str = "images") -> None:
        self.scenes, self.done, self.shown, self.unit = scenes, done, shown, unit
        self.rendered, self.began = 0, time.monotonic()
        if shown and done:
            print(f"synth: {done} of {scenes} scenes already there", file=sys.stderr)

    def add(self, name: str, count: int) -> None:
        """Counts a shard."""
        self.done, self.rendered = self.done + count, self.rendered + count
        if self.shown:
            rate = self.rendered / max(time.monotonic() - self.began, 1e-9)
            left = (self.scenes - self.done) / max(rate, 1e-9)
            print(
                f"synth: {name} {self.done}/{self.scenes}, {rate:.1f} {self.unit}/s, "
                f"{left / 60:.1f} min left",
                file=sys.stderr,
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Makes SIGTERM run every `finally` block, which stop workers and remove temporary files.

    A caller's own handler stays; only the main thread can set one.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_description(folder: Path, wanted: dict[str, Any]) -> None:
    """Writes what defines a new set, or compares it with an existing set.

    Raises:
        ValueError: the folder holds scenes of another set.
    """
    path = folder / DESCRIPTION
    if not any(folder.glob("synthetic-*.tar")):
        write_file(path, json.dumps(wanted, indent=2) + "\n")
    elif path.exists():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({explain(error)}): remove it") from error
        other = [f"{k} {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]
        if other:
            raise ValueError(
                f"{path}: the scenes there were made with {'; '.join(other)}: choose another "
                "folder or remove it"
            )


def _scenes_by_shard(folder: Path, seed: int, shard_size: int) -> dict[str, int]:
    """Counts the scenes in each shard that a folder has.

    Raises:
        ValueError: a file is not a shard, or does not hold the scenes that its name gives.
    """
    counts = {}
    for path in sorted(folder.glob(f"synthetic-{'[0-9]' * 6}.tar")):
        try:
            with tarfile.open(path) as tar:
                names = tar.getnames()
                member = tar.extractfile(next(n for n in names if n.endswith(".json")))
                found = json.load(member)["seed"] if member is not None else None
        except (tarfile.TarError, StopIteration, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a shard of synthetic scenes: remove it") from error
        first = seed + shard_size * int(path.stem[-6:])
        count = sum(name.endswith(".jpg") for name in names)
        wrong = f"begins with seed {found}, not {first}" if found != first else ""
        if count > shard_size:
            wrong = f"holds {count} scenes, more than {shard_size}"
        if wrong:
            raise ValueError(
                f"{path} {wrong}: it was written with another seed or shard size; give that one, "
                "choose another folder or remove it"
            )
        counts[path.name] = count
    return counts


def _work(connection: Connection) -> None:
    """Body of a worker process: shards in, results or errors out, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        while True:
            task = connection.recv()
            try:
                connection.send(task.write())
            except Exception as error:
                connection.send(error)
    except (EOFError, BrokenPipeError):
        return


def _run_parallel(todo: Sequence[FileTask], n: int) -> Iterator[tuple[str, int]]:
    """Write shards in n processes of one thread each; results as they come."""
    saved = {k: os.environ.get(k) for k in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    context = mp.get_context("spawn")
    running: dict[Connection, tuple[BaseProcess, FileTask]] = {}
    processes: list[BaseProcess] = []
    waiting = iter(todo)
    try:
        for task in itertools.islice(waiting, n):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ours.send(task)
            running[ours] = process, task
        while running:
            for ready in wait(list(running)):
                connection = cast(Connection, ready)
                process, task = running.pop(connection)
                try:
                    result = connection.recv()
                except EOFError:
                    process.join()
                    raise RuntimeError(
                        f"a worker died (exit code {process.exitcode}) in {task.path.name}, seeds "
                        f"{task.seed + task.first} to {task.seed + task.first + task.count - 1}"
                    ) from None
                if isinstance(result, Exception):
                    raise result
                following = next(waiting, None)
                if following is not None:
                    connection.send(following)
                    running[connection] = process, following
                else:
                    connection.close()
                yield result
    finally:
        for k, v in saved.items():
            if v is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = v
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
