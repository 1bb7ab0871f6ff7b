"""The process that holds the models and computes batches of jobs.

A worker reads messages ``(alone, [(number, job), ...])`` from its channel; ``alone`` lets it use
the processors of all workers. It sends ``(number, answer)``
for each job as soon as it is encoded, and ``None`` when it can take the next batch; if the model
cannot be loaded, a text that says why, and it ends. Pictures are decoded here, too: a decoder that
crashes on a damaged file costs a worker, which is replaced.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import BoundedSemaphore, Lock
from typing import Any

from .channel import Channel
from .jobs import Answer, Job, PredictOptions, refuse
from .settings import ServerSettings

_PENDING = 16
"""Results that may wait to be encoded, before the next batch is computed."""


def run_worker(channel: Channel, settings: ServerSettings) -> None:
    """Answers jobs until the channel closes."""
    os.environ["DAFAST_MAX_PIXELS"] = str(settings.max_pixels)
    import torch

    threads = torch.get_num_threads()
    models = Models(settings)
    try:
        models.load(settings.models[0])
    except Exception as error:
        channel.send(str(error) or type(error).__name__)
        return
    lock, free = Lock(), BoundedSemaphore(_PENDING)

    def send(message: Any) -> None:
        # If the server has gone, the next `recv` ends the worker.
        with lock, suppress(OSError):
            channel.send(message)

    def finish(number: int, result: Any, job: Job) -> None:
        try:
            answer = _encode(result, job)
        except Exception as error:
            answer = refuse(500, f"the result cannot be written: {error}")
        finally:
            free.release()
        send((number, answer))

    with ThreadPoolExecutor(2) as encoders:
        send(None)
        while True:
            try:
                alone, batch = channel.recv()
            except (EOFError, OSError):
                return
            torch.set_num_threads(threads if alone else max(1, threads // settings.workers))
            for number, job, result in models.predict(batch):
                if isinstance(result, Answer):
                    send((number, result))
                else:
                    free.acquire()
                    encoders.submit(finish, number, result, job)
            send(None)


def _encode(result: Any, job: Job) -> Answer:
    from .encoding import encode, headers_of

    try:
        body = encode(result, job.format, job.palette)
    except ValueError as error:
        return refuse(422, str(error))
    return Answer(200, body, headers_of(result))


class Models:
    """The models of a worker, loaded at their first use."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._loaded: dict[str, Any] = {}

    def load(self, name: str) -> Any:
        """Returns a model, optimized if its kind can be."""
        from ..models import DepthAnything

        if name not in self._loaded:
            self._loaded[name] = DepthAnything.from_pretrained(
                name, device=self.settings.device, dtype=self.settings.dtype
            )
        return self._loaded[name]

    def predict(self, batch: list[tuple[int, Job]]) -> Iterator[tuple[int, Job, Any]]:
        """Yields for each job of a batch, in any order, a `DepthResult` or an `Answer`.

        The pictures in memory have at most twice ``max_pixels`` pixels.
        """
        waiting: dict[PredictOptions, list[tuple[int, Job, Any]]] = {}
        pixels = 0
        for number, job in batch:
            picture = self._decode(job)
            if isinstance(picture, Answer):
                yield number, job, picture
                continue
            waiting.setdefault(job.options, []).append((number, job, picture))
            height, width = picture.pixels.shape[:2]
            pixels += height * width
            if pixels >= self.settings.max_pixels:
                for options, entries in waiting.items():
                    yield from self._predict(options, entries)
                waiting, pixels = {}, 0
        for options, entries in waiting.items():
            yield from self._predict(options, entries)

    def _decode(self, job: Job) -> Any:
        """The picture of a job, or the answer that refuses it."""
        from ..images import decode
        from ..picture_values import ImageError

        if (pixels := count_pixels(job.data)) > self.settings.max_pixels:
            limit = self.settings.max_pixels / 1e6
            return refuse(
                413, f"the picture has {pixels / 1e6:.1f} megapixels; the limit is {limit:g}"
            )
        try:
            return decode(job.data, "the picture")
        except ImageError as error:
            return refuse(415, str(error))

    def _predict(
        self, options: PredictOptions, entries: list[tuple[int, Job, Any]]
    ) -> Iterator[tuple[int, Job, Any]]:
        from ..models.inference import InferenceOptions
        from ..models.prediction import predict_results

        keep = any(job.format in _SHOW_PHOTO for _, job, _ in entries)
        try:
            model = self.load(options.model)
        except Exception as error:
            for number, job, _ in entries:
                yield number, job, refuse(500, f"the model cannot be loaded: {error}")
            return
        try:
            results: Iterable[Any] = predict_results(
                model,
                [picture for _, _, picture in entries],
                InferenceOptions(size=options.size, fit=options.fit),
                fov=options.fov,
                keep_image=keep,
            )
        except Exception as error:
            if len(entries) > 1:  # one of them may be at fault, for example without a camera
                for entry in entries:
                    yield from self._predict(options, [entry])
                return
            status = 422 if isinstance(error, ValueError | TypeError) else 500
            results = [refuse(status, str(error) or type(error).__name__)]
        for (number, job, _), result in zip(entries, results, strict=True):
            yield number, job, result


_SHOW_PHOTO = ("npz", "ply", "glb")


def count_pixels(data: bytes) -> int:
    """Reads the number of pixels from the header of a picture file; 0 if it cannot be read."""
    import PIL.Image

    from .._warnings import filtered
    from ..picture_formats import is_heif, register_heif

    limit = PIL.Image.MAX_IMAGE_PIXELS
    try:
        if is_heif(data[:512]):
            register_heif()
        PIL.Image.MAX_IMAGE_PIXELS = None
        with filtered("ignore"), PIL.Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:
        return 0
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
