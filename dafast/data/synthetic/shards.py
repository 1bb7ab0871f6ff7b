"""Writing a synthetic data set as WebDataset tar shards."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing as mp
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from dafast.data.synthetic.sample import HELD_OUT_SEED, SyntheticSample, render_scene

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class _Task:
    path: Path
    first: int
    count: int
    seed: int
    size: tuple[int, int] | None
    textures: str | None


def encode(sample: SyntheticSample) -> dict[str, bytes]:
    """The members of one sample: ``jpg``, ``disparity.png`` (16 bit) and ``json``."""
    quality = int(np.random.default_rng([271828, sample.seed]).integers(80, 98))
    jpg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(sample.image).save(jpg, "JPEG", quality=quality)
    disparity = sample.disparity
    top = float(disparity.max())
    code = np.round(disparity.astype(np.float64) / max(top, 1e-12) * 65535).astype(np.uint16)
    Image.fromarray(code).save(png, "PNG", compress_level=1)
    meta = {
        "seed": sample.seed, "kind": sample.kind, "disparity_max": top,
        "fx": sample.fx, "fy": sample.fy, "cx": sample.cx, "cy": sample.cy,
    }  # fmt: skip
    return {
        "jpg": jpg.getvalue(),
        "disparity.png": png.getvalue(),
        "json": json.dumps(meta).encode(),
    }


def _write_shard(task: _Task) -> tuple[str, int]:
    """Write one shard under a temporary name, then rename it."""
    temporary = task.path.with_name(f".{task.path.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(task.first, task.first + task.count):
                seed = task.seed + index
                try:
                    members = encode(render_scene(seed, size=task.size, textures=task.textures))
                except Exception as error:
                    raise RuntimeError(f"scene with seed {seed} failed: {error!r}") from error
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))
        os.replace(temporary, task.path)
    finally:
        temporary.unlink(missing_ok=True)
    return task.path.name, task.count


def write_shards(
    out: str | Path,
    scenes: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    shard_size: int = 500,
    size: tuple[int, int] | None = None,
    textures: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Render ``scenes`` scenes with the seeds seed, seed + 1, ... into tar shards.

    Shards are named ``synthetic-000000.tar`` and so on; sample ``%08d`` has the members ``.jpg``,
    ``.disparity.png`` (uint16, disparity = value / 65535 * disparity_max; 0 is sky) and ``.json``
    (seed, kind, disparity_max in 1/m, fx, fy, cx, cy in pixels). A shard appears under its name
    only when it is finished; a second run skips finished shards. The same arguments give the same
    bytes on the same machine, whatever the number of workers.

    Args:
        out: the folder, created if missing.
        scenes: how many images.
        seed: seed of the first image; training stays below ``HELD_OUT_SEED``.
        workers: processes; None takes one per usable core.
        shard_size: images in a shard.
        size: (width, height) of every image; None draws one per image.
        textures: a folder of further photographs.
        progress: print a line per finished shard to stderr.

    Raises:
        RuntimeError: a scene failed; the message names its seed.
        ValueError: scenes or shard_size below 1, a negative seed, seeds on both sides of
            ``HELD_OUT_SEED``, or shards of other seeds in the folder.
    """
    if scenes < 1 or shard_size < 1 or seed < 0:
        raise ValueError(
            f"need scenes >= 1, shard_size >= 1, seed >= 0: {scenes}, {shard_size}, {seed}"
        )
    if seed < HELD_OUT_SEED < seed + scenes:
        raise ValueError(
            f"seeds {seed} to {seed + scenes - 1} mix training with the held-out scenes from "
            f"{HELD_OUT_SEED} on; start lower, or at {HELD_OUT_SEED} or above for held-out ones"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    texture_folder = None if textures is None else os.path.abspath(textures)
    tasks = [
        _Task(
            folder / f"synthetic-{k:06d}.tar",
            start,
            min(shard_size, scenes - start),
            seed,
            size,
            texture_folder,
        )
        for k, start in enumerate(range(0, scenes, shard_size))
    ]
    todo = [t for t in tasks if not _finished(t)]
    done = scenes - sum(t.count for t in todo)
    rendered, began = 0, time.monotonic()

    def report(name: str, count: int) -> None:
        nonlocal done, rendered
        done, rendered = done + count, rendered + count
        if progress:
            rate = rendered / max(time.monotonic() - began, 1e-9)
            left = (scenes - done) / max(rate, 1e-9)
            print(
                f"synth: {name} {done}/{scenes}, {rate:.1f} images/s, {left / 60:.1f} min left",
                file=sys.stderr,
            )

    n = min(workers or _cores(), len(todo))
    try:
        if n <= 1:
            for task in todo:
                report(*_write_shard(task))
        else:
            for result in _run_parallel(todo, n):
                report(*result)
    finally:
        _sweep(folder)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finished(task: _Task) -> bool:
    """Whether a shard exists with all its samples.

    Raises:
        ValueError: the file holds other seeds than the task, or is no shard.
    """
    if not task.path.exists():
        return False
    try:
        with tarfile.open(task.path) as tar:
            names = tar.getnames()
            member = tar.extractfile(next(n for n in names if n.endswith(".json")))
            found = json.load(member)["seed"] if member is not None else None
    except (tarfile.TarError, StopIteration, KeyError, ValueError) as error:
        raise ValueError(f"{task.path} is not a shard of synthetic scenes: remove it") from error
    if found != task.seed + task.first:
        raise ValueError(
            f"{task.path} begins with seed {found}, not {task.seed + task.first}: it was written "
            "with other arguments; choose another folder or remove it"
        )
    return len(names) == 3 * task.count


def _work(connection: Connection) -> None:
    """Body of a worker process: shards in, results or errors out, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    try:
        while True:
            task = connection.recv()
            try:
                connection.send(_write_shard(task))
            except Exception as error:
                connection.send(error)
    except (EOFError, BrokenPipeError):
        return


def _run_parallel(todo: list[_Task], n: int) -> Iterator[tuple[str, int]]:
    """Write shards in n processes of one thread each; results as they come."""
    saved = {k: os.environ.get(k) for k in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    context = mp.get_context("spawn")
    running: dict[Connection, tuple[BaseProcess, _Task]] = {}
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


def _sweep(folder: Path) -> None:
    """Remove what dead processes left unfinished."""
    for stale in folder.glob(".synthetic-*.tmp"):
        if not _alive(stale):
            stale.unlink(missing_ok=True)


def _alive(temporary: Path) -> bool:
    """Whether the process that writes a temporary shard still runs."""
    try:
        os.kill(int(temporary.name.split(".")[-2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
