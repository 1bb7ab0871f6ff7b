"""The photos of `dafast run`, one after the other."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import explain, file_kind, one_line
from ..formats.facts import read_facts
from ..images import PHOTO_SUFFIXES, ImageError, as_array, load_image
from ..picture_sources import EncodedPicture, is_pipe
from ._log import is_quiet
from ._process import interrupted
from .ahead import Ahead
from .outputs import (
    Output,
    Plan,
    ResultExistsError,
    is_of,
    missing_outputs,
    plan_outputs,
    range_of,
    replaced_outputs,
    strays,
)

if TYPE_CHECKING:
    from ..distributed import Processes
    from ..result import DepthResult
    from .photos import Photo
    from .predictors import DepthPredictor, Predictor


@dataclass
class Counts:
    """Counts of the photos that have been handled so far.

    Attributes:
        written: Photos with new results.
        kept: Photos whose results were there already.
        failures: Names and reasons.
        warnings: Texts.
        cameras: Focal lengths in pixels of the photos, by the source of the camera.
    """

    written: int = 0
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cameras: dict[str, list[float]] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.written + other.written,
            self.kept + other.kept,
            self.failures + other.failures,
            self.warnings + other.warnings,
            {
                source: self.cameras.get(source, []) + other.cameras.get(source, [])
                for source in (*self.cameras, *other.cameras)
            },
        )


class PhotoRun:
    """Writes the results of photos.

    Args:
        predictor: The model.
        photos: The photos of this process.
        all_photos: Those of all processes, none of which is overwritten.
        formats: Names of the formats that are asked for.
        args: The command line.
    """

    def __init__(
        self,
        predictor: Predictor,
        photos: Sequence[Photo],
        all_photos: Sequence[Photo],
        formats: Sequence[str],
        args: argparse.Namespace,
    ) -> None:
        self.predictor, self.photos, self.args = predictor, photos, args
        self.formats = formats
        self.options = dict(predictor.options)
        self.counts = Counts()
        # No photo is overwritten, nor the file that a link among them points to.
        self.sources = {entry_of(photo.path) for photo in all_photos}
        self.sources |= {os.path.realpath(photo.path) for photo in all_photos}
        self.pipes: dict[Path, bytes] = {}
        self.predicted: dict[Path, DepthResult] = {}
        self.ahead = Ahead() if predictor.decodes_ahead else None
        self.next: Path | None = None  # the photo after the current one
        used = {option for name in formats for option in predictor.formats[name].depends}
        self.shows_camera = "camera" in used or "camera" in predictor.base

    def run(self) -> None:
        """Handles all photos; one that fails never stops the others."""
        for photo, bar in self._each(self.photos):
            began = time.perf_counter()
            with self._failing(photo, bar):
                wrote, note = self._one(photo)
                self.counts.written += wrote
                self.counts.kept += not wrote
                if bar.disable and not is_quiet() and not sys.stderr.isatty():
                    what = f"{time.perf_counter() - began:.2f} s" if wrote else "exists"
                    results = f"{shown(self.args.out / photo.result)}{self._ending()}"
                    print(f"{shown(photo.path)} -> {results}  {what}{note}", flush=True)

    def find_range(self, world: Processes) -> None:
        """Sets one range of disparity for the photos of all processes (``--common-range``).

        Photos without results are predicted, and their maps wait in a temporary folder, so that
        the memory does not grow with their number.
        """
        predictor: DepthPredictor = self.predictor  # type: ignore[assignment]
        low, high = math.inf, -math.inf
        folder = self._folder = tempfile.TemporaryDirectory(dir=self.args.out, prefix=".range-")
        remaining = []
        for number, (photo, bar) in enumerate(self._each(self.photos)):
            with self._failing(photo, bar):
                plan = self._plan(photo)
                extent = None if self.args.overwrite else _noted_range(plan)
                if extent is None:
                    result = self._predict(photo, False)
                    # Of what the files hold, so that another run finds the same range in them.
                    extent = predictor.make(result, photo.name).shown.disparity_range
                    self.predicted[photo.path] = _on_disk(result, Path(folder.name), number)
                low, high = min(low, extent[0]), max(high, extent[1])
                remaining.append(photo)
        self.photos = remaining
        extents = [pair for pair in world.gather((low, high)) if pair[0] <= pair[1]]
        if extents:
            self.options["range"] = [min(p[0] for p in extents), max(p[1] for p in extents)]

    def close(self) -> None:
        """Removes the temporary folder of `find_range`, and ends the thread that decodes."""
        self.predicted.clear()
        if self.ahead is not None:
            self.ahead.close()
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _ending(self) -> str:
        endings = [self.predictor.formats[name].ending for name in self.formats]
        return "_*.png" if all(e.startswith("_") for e in endings) else "*"

    def _each(self, photos: Sequence[Photo]) -> Iterator[tuple[Photo, Any]]:
        """The photos, with a bar on a terminal."""
        from tqdm import tqdm

        off = is_quiet() or not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
        with tqdm(total=len(photos), unit="photo", disable=off, leave=False) as bar:
            following = [*(photo.path for photo in photos[1:]), None]
            for photo, self.next in zip(photos, following, strict=False):
                bar.set_postfix_str(shown(photo.path.name))
                yield photo, bar
                bar.update()
                if interrupted():  # and a library swallowed it
                    raise KeyboardInterrupt

    @contextmanager
    def _failing(self, photo: Photo, bar: Any) -> Iterator[None]:
        """Notes the failure of a photo."""
        try:
            yield
        except Exception as error:
            if interrupted():
                raise KeyboardInterrupt from error
            if self.args.traceback:
                raise
            self.counts.failures.append((str(photo.path), reason_of(error, photo.path)))
            if not sys.stderr.isatty():
                print(f"{shown(photo.path)}: FAILED", flush=True)

    def _predict(self, photo: Photo, keep_image: bool) -> Any:
        """Predicts a photo, while the next one is decoded."""
        image = None
        if self.ahead is not None:
            image = self.ahead.take(photo.path)
            self.ahead.start(None if self.next in self.predicted else self.next)
        image = self._image(photo) if image is None else image
        return self.predictor.predict(image, photo.name, keep_image)

    def _image(self, photo: Photo) -> Any:
        data = self.pipes.get(photo.path)
        return photo.path if data is None else EncodedPicture(data, str(photo.path))

    def _plan(self, photo: Photo) -> Plan:
        if is_pipe(photo.path) and photo.path not in self.pipes:  # it can be read only once
            self.pipes[photo.path] = photo.path.read_bytes()
        data = self.pipes.get(photo.path)
        if data is None and not photo.path.is_file():
            load_image(photo.path)  # raises, and says what it is instead
        digest = _digest(photo.path) if data is None else hashlib.sha256(data).hexdigest()[:32]
        return plan_outputs(
            self.args.out,
            photo.result,
            self.predictor.formats,
            self.formats,
            {**self.predictor.base, "photo": digest},
            self.options,
        )

    def _one(self, photo: Photo) -> tuple[bool, str]:
        """Handles one photo: whether it wrote results, and what to say about the camera."""
        plan = self._plan(photo)
        for output in plan.wanted:
            if output.path.is_dir():
                raise ResultExistsError(
                    f"{output.path} is a folder; remove it or choose another --out"
                )
            if entry_of(output.path) in self.sources:
                raise ResultExistsError(
                    f"{output.path} is itself one of the photos; choose another --out"
                )
        outputs = replaced_outputs(plan) if self.args.overwrite else missing_outputs(plan)
        outputs = [output for output in outputs if entry_of(output.path) not in self.sources]
        note = self._write(photo, outputs) if outputs else ""
        self.pipes.pop(photo.path, None)
        first = plan.wanted[0].path.name
        for path in strays(plan):
            self.counts.warnings.append(
                f"{path} is not of the same prediction as {first}; remove it, or replace it with "
                "--overwrite and the option that writes it"
            )
        return bool(outputs), note

    def _write(self, photo: Photo, outputs: Sequence[Output]) -> str:
        shows_photo = any(output.format.shows_photo for output in outputs)
        result: Any = self.predicted.pop(photo.path, None)
        if result is None:
            result = self._predict(photo, shows_photo)
        elif shows_photo:
            result = _with_photo(result, self._image(photo))
        made: Any = self.predictor.make(result, photo.name)
        del result
        for output in outputs:
            output.format.write(output.path, made, output.settings)
        for path, facts in made.noted.items():
            self._warn_of_lost(path, facts, made.result.values.size)
        if not self.shows_camera or made.result.intrinsics is None:  # of a panorama
            return ""
        source, camera = made.result.camera_source, made.result.intrinsics
        self.counts.cameras.setdefault(source, []).append(camera.fx)
        return f"  camera: fx {camera.fx:.1f} fy {camera.fy:.1f} ({source})"

    def _warn_of_lost(self, path: Path, facts: dict[str, Any], size: int) -> None:
        lost = facts.get("out_of_range", 0)
        if lost:
            scale, far = facts["depth_scale"], 65535 / facts["depth_scale"]
            if facts["max"] * scale < 65535.5:  # what is lost is near
                why = f"are nearer than half a step of {1 / scale:.4g} m"
                remedy = f"larger --depth-scale has smaller steps ({facts['min']:.4g} m is nearest)"
            else:
                why = f"are not within {far:.4g} m"
                remedy = "smaller --depth-scale reaches farther "
                remedy += f"(the largest depth is {facts['max']:.4g} m)"
            self.counts.warnings.append(
                f"{path}: {lost} of {size} pixels {why} and became 0; a {remedy}"
            )


def _on_disk(result: DepthResult, folder: Path, number: int) -> DepthResult:
    """A result whose arrays are files."""

    def moved(name: str, array: np.ndarray) -> np.ndarray:
        path = folder / f"{number}-{name}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")

    sky = None if result.sky is None else moved("sky", result.sky)
    return dataclasses.replace(result, values=moved("map", result.values), sky=sky)


def _with_photo(result: DepthResult, image: Any) -> DepthResult:
    return dataclasses.replace(result, image=as_array(image, result.name))


def _noted_range(plan: Plan) -> tuple[float, float] | None:
    """The range of disparity of a photo, from a result of an earlier run."""
    for output in plan.outputs:
        if output.format.holds_facts and is_of(plan, output.path):
            facts = read_facts(output.path) or {}
            extent = range_of(facts)
            if extent is not None and extent[0] > 0 and facts.get("kind") == "depth":
                return 1 / extent[1], 1 / extent[0]
            if extent is not None and "min" in facts and facts.get("kind") == "disparity":
                return extent
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def shown(name: object) -> str:
    """A name without the characters that would change the line or the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def entry_of(path: Path) -> str:
    """The entry of a folder that a path names: links among its folders resolved, not itself."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def reason_of(error: Exception, photo: Path) -> str:
    """The message of an error on one line, without the photo's name, which precedes it."""
    text = explain(error).removeprefix(f"{one_line(str(photo))}: ")
    if isinstance(error, OSError) and error.filename and Path(error.filename) == photo:
        text = error.strerror or text
    if isinstance(error, ResultExistsError):
        return f"{text}; --overwrite replaces it" if "--out" not in text else text
    named_as_photo = photo.suffix.lower() in PHOTO_SUFFIXES
    if isinstance(error, ImageError) and photo.is_file() and not named_as_photo:
        with photo.open("rb") as file:
            if file_kind(file.read(512)) in ("a text file", "a JSON file"):
                text += f"; for a list of photos: dafast run --out DIR @{shown(photo)}"
    if isinstance(error, OSError | ValueError | MemoryError):
        return text
    return f"{type(error).__name__}: {text}"
