"""One run of `dafast video`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..files import DiskFullError
from ..models.digest import digest_model
from ..models.streaming import BATCH_FRAMES, raw_results, stabilizer_for
from ..picture_sources import is_pipe
from ..result import DepthResult
from ..video import conversion
from ..video.conversion import Conversion, Outputs
from ..video.encoder import check_aspect, check_output
from ..video.muxing import check_copies
from ..video.reader import open_video
from ..video.rendering import Renderer
from ..video.restart import Restart
from ..video.source import Selection
from ..video.workspace import Workspace
from ._camera import camera_of
from ._common import CommandError, make_folder
from ._log import is_quiet
from ._model import load_model, own_device


class VideoRun:
    """A model, a video and its results.

    Args:
        args: The command line, with the outputs checked.

    Attributes:
        outputs: What is written.
        is_finished: Whether an earlier run has written all of it.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from ..models.inference import InferenceOptions
        from ..models.prediction import unit_of
        from ..models.segmentation import is_segmentation
        from ..palettes import check_palette
        from ..views.stereo import check_divergence
        from ..views.warp import check_convergence

        self.args = args
        self._closing = contextlib.ExitStack()
        check_palette(args.palette)
        check_divergence(args.divergence)
        check_convergence(args.convergence)
        self.selection = Selection(args.every, args.fps, args.start, args.end)
        self.selection.check()
        if args.out is not None:
            check_output(args.out, args.codec)
        self.is_finished = self._is_finished()
        if is_segmentation(args.model):
            raise CommandError(f"{args.model} is a segmentation model: dafast video needs depth")
        self.outputs = self._outputs("cpu", 0)
        if self.is_finished:
            return
        self.camera = camera_of(args)
        self.model = load_model(args, own_device(args.device))
        config, device = self.model.config, self.model.device.type
        self.options = InferenceOptions(args.fit, args.size, max_tokens=args.max_tokens)
        self.options.check(config)
        self.outputs = self._outputs(str(self.model.device), config.temporal_frames or 0)
        for option, path in (("--out", args.out), ("--raw", args.raw)):
            if path is not None:
                make_folder(path.parent, option)
        if args.frames is not None:
            make_folder(args.frames[1], "--frames")
        self.reader = self._open(0 if device == "cuda" else 1)
        kind = "disparity" if config.quantity == "disparity" else "depth"
        facts = {"kind": kind, "unit": unit_of(config), "near_is_large": kind == "disparity"}
        facts["model"] = config.name
        self.meter: Any = None
        if args.measure:
            from ..video.flicker import FlickerMeter

            self.meter = FlickerMeter()
        self.conversion = Conversion(
            self.reader,
            self.selection,
            self._predict,
            stabilizer_for(self.model, args.stabilize, args.lookahead),
            self.outputs,
            self._settings(),
            facts,
            resume=args.resume,
            meter=self.meter,
        )

    def _outputs(self, device: str, reach: int) -> Outputs:
        args = self.args
        threads = 0 if device.startswith("cuda") else 1
        renderer = Renderer(args.layout, args.palette, args.divergence, args.convergence, device)
        if not (args.out or args.raw or args.frames):  # --measure needs a place for its parts
            folder = self._closing.enter_context(tempfile.TemporaryDirectory())
            return Outputs(None, place=Path(folder) / "video")
        return Outputs(
            args.out,
            args.codec,
            renderer,
            threads,
            args.frames,
            args.raw,
            args.depth_scale,
            segment=conversion.SEGMENT,
            batch=BATCH_FRAMES,
            reach=reach,
        )

    def _is_finished(self) -> bool:
        """Whether ``--resume`` finds the results of a run that was not interrupted."""
        args = self.args
        main = args.out or args.raw
        if not args.resume or main is None or Workspace(main).exists():
            return False
        return all(path is None or path.exists() for path in (args.out, args.raw))

    def _open(self, threads: int) -> Any:
        args = self.args
        spool = None
        if args.out is not None and (args.source == "-" or is_pipe(Path(args.source))):
            folder = self._closing.enter_context(
                tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".pipe-")
            )
            spool = Path(folder) / "source"
        reader = open_video(args.source, self.selection, threads=threads, spool=spool)
        self._closing.callback(reader.close)
        path = reader.info.path
        if args.out is not None:
            check_aspect(args.out, args.codec, reader.info)
            if path is not None and path != spool:
                check_copies(path, args.out)
        if args.resume and not reader.info.can_resume:
            raise CommandError(f"--resume: {reader.info.name} can be read only once")
        return reader

    def _settings(self) -> dict[str, Any]:
        """All that the results depend on."""

        args = self.args
        source: list[Any] = [args.source]
        with contextlib.suppress(OSError):
            facts = Path(args.source).stat()
            source = [str(Path(args.source).resolve()), facts.st_size, facts.st_mtime_ns]
        names = ["codec", "layout", "palette", "divergence", "convergence", "stabilize"]
        names += ["lookahead", "fps", "every", "start", "end", "fit", "size", "max_tokens"]
        names += ["depth_scale"]
        return {
            "source": source,
            "weights": digest_model(self.model),
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "camera": str(self.camera.setting),
            "frames": [str(part) for part in args.frames or ()],
            "raw": str(args.raw),
            "out": str(args.out),
            **{name: getattr(args, name) for name in names},
        }

    def _predict(
        self, frames: Iterator[np.ndarray], state: bytes
    ) -> Generator[DepthResult | Restart, None, None]:
        return raw_results(
            self.model,
            frames,
            self.options,
            intrinsics=self.camera.intrinsics,
            fov=self.camera.fov,
            state=state,
        )

    def convert(self) -> bool:
        """Writes the results; whether it was interrupted."""
        from tqdm import tqdm

        job = self.conversion
        off = is_quiet() or not sys.stderr.isatty()
        bar = tqdm(
            total=self.reader.info.count,
            initial=job.done,
            unit="frame",
            disable=off,
            leave=False,
        )
        interrupted = False
        try:
            with bar, contextlib.closing(job.run()) as steps:
                for _ in steps:
                    bar.update()
        except KeyboardInterrupt:
            interrupted = True
        except DiskFullError as error:
            remedy = "; --resume continues" if self.reader.info.can_resume else ""
            raise CommandError(f"{error}{remedy}") from error
        if job.done or not interrupted:
            job.finish(complete=not interrupted)
        return interrupted

    def summary(self, seconds: float, interrupted: bool) -> int:
        """Prints the summary and returns the exit code."""
        job, args = self.conversion, self.args
        done = job.done
        places = [args.out, args.frames and args.frames[1], args.raw]
        where = " and ".join(str(place) for place in places if place)
        text = f"{done} frame{'s' * (done != 1)}"
        text += f" written to {where}" if where else " measured"
        rate = (done - job.kept) / seconds if seconds else 0.0
        print(f"{text} ({seconds:.1f} s, {rate:.1f} frames/s)")
        if self.meter is not None and not interrupted:
            print(_flicker(self.meter.result()))
        for problem in job.problems:
            print(f"  DAMAGED {args.source}: {problem}")
        if interrupted:
            resumable = self.reader.info.can_resume
            print("  interrupted" + ("; --resume continues" if resumable and where else ""))
            return 130
        return 1 if job.problems else 0

    def __enter__(self) -> VideoRun:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()


def _flicker(found: dict[str, float]) -> str:
    """The line of ``--measure``."""
    before, after = found["flicker_before"], found["flicker_after"]
    return (
        f"  flicker {before:.2f}% of the range before, {after:.2f}% after; "
        f"{100 * found['compared']:.0f}% of the pixels compared, {found['cuts']} cuts"
    )
