"""The formats of exported files, and `export`, which writes and verifies one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..files import whole_files
from ..runtime import FileFacts
from . import coreml, onnx_file, openvino_file, programs
from .network import facts_of
from .quantize import quantize
from .verify import Check, Run, VerificationError, verify


@dataclass(frozen=True)
class ExportFormat:
    """A format of exported files.

    Attributes:
        suffix: The suffix of its file.
        need: Raises a `MissingPackageError` unless its packages can be imported.
        write: Writes a file: the model, its facts, the path, and photos for int8.
        load: Gives a function that runs a file; None where this machine cannot run it.
        dtypes: The data types that it has.
        preprocess: Whether the graph can contain the resizes of photos and maps.
        least: The fewest patches a side that a file with a dynamic size takes.
    """

    suffix: str
    need: Callable[[], None]
    write: Callable[[nn.Module, FileFacts, Path, Sequence[Any]], None]
    load: Callable[[Path, FileFacts], Run] | None
    dtypes: tuple[str, ...] = ("float32", "float16")
    preprocess: bool = False
    least: int = 1


def _build_onnx(model: nn.Module, facts: FileFacts, photos: Sequence[Any]) -> Any:
    """The `onnx.ModelProto` of a file: traced, and quantised for int8."""
    built = onnx_file.onnx_model(model, facts)
    return quantize(built, facts, photos) if facts.dtype == "int8" else built


def _write_onnx(model: nn.Module, facts: FileFacts, path: Path, photos: Sequence[Any]) -> None:
    onnx_file.write_onnx(_build_onnx(model, facts, photos), facts, path)


def _write_openvino(model: nn.Module, facts: FileFacts, path: Path, photos: Sequence[Any]) -> None:
    openvino_file.write_openvino(_build_onnx(model, facts, photos), facts, path)


def _need_openvino() -> None:
    onnx_file.need_onnx()
    openvino_file.need_openvino()


_ALL = ("float32", "float16", "int8")

FORMATS = {
    "onnx": ExportFormat(
        ".onnx", onnx_file.need_onnx, _write_onnx, onnx_file.run_onnx, _ALL, preprocess=True
    ),
    "openvino": ExportFormat(
        ".xml", _need_openvino, _write_openvino, openvino_file.run_openvino, _ALL, preprocess=True
    ),
    "torch": ExportFormat(
        ".pt2",
        lambda: None,
        programs.write_program,
        programs.run_program,
        ("float32",),
        least=programs.FEWEST_PATCHES,
    ),
    "aoti": ExportFormat(
        ".pt2",
        lambda: None,
        programs.write_package,
        programs.run_package,
        ("float32",),
        least=programs.FEWEST_PATCHES,
    ),
    "coreml": ExportFormat(".mlpackage", coreml.need_coreml, coreml.write_coreml, None),
}
"""The formats by the name that ``--format`` takes."""


def export(
    model: nn.Module,
    path: str | Path,
    format: str = "onnx",
    *,
    shape: tuple[int, int] | None = None,
    batch: int | None = None,
    dtype: str = "float32",
    preprocess: bool = False,
    frames: int | None = None,
    check: bool = True,
    calibrate: Sequence[Any] = (),
) -> list[Check]:
    """Writes a model to a file that runs without dafast, and compares the file with the model.

    The file appears under its name only if it gives the results of the model.

    Args:
        model: A `DepthAnything` or a `SegmentationModel`.
        path: The file.
        format: A name in `FORMATS`.
        shape: A fixed height and width of the input; None for any multiples of the patch size
            (with ``preprocess`` for photos of any size).
        batch: A fixed number of images of a call; None for any.
        dtype: ``"float32"``, ``"float16"`` (weights and arithmetic; inputs and outputs stay
            float32) or ``"int8"``.
        preprocess: Whether the graph takes photos (B, H, W, 3) uint8 and gives maps of their
            size, instead of the network's own input and output.
        frames: Length of the clips of a model with temporal modules; None for its longest. Such a
            file takes one clip (1, frames, 3, H, W) in a call and gives (1, frames, H, W).
        check: Whether to verify the file; see `dafast.export.verify`.
        calibrate: Photos for int8, as for `DepthAnything.infer`.

    Returns:
        The comparisons; empty without ``check``.

    Raises:
        MissingPackageError: If a package of the format is not installed.
        VerificationError: If the file differs from the model; then there is no file.
        ValueError: If an option is not valid for the model or the format.
    """
    facts, chosen = checked(
        model,
        format,
        shape=shape,
        batch=batch,
        dtype=dtype,
        preprocess=preprocess,
        frames=frames,
    )
    path = Path(path)
    if path.suffix != chosen.suffix:
        raise ValueError(f"{path}: the suffix of {format} files is {chosen.suffix}")
    if dtype == "int8" and not calibrate:
        raise ValueError("dtype='int8' needs photos to calibrate with: pass calibrate=")
    if check and chosen.load is None:
        raise ValueError(f"{format} files cannot run here: leave the verification out")
    with whole_files(path.parent) as folder:
        written = folder / path.name
        chosen.write(model, facts, written, calibrate)
        if written.is_dir():  # a package of Core ML; the block above moves only files
            shutil.rmtree(path, ignore_errors=True)
            written.rename(path)
            return []
        return _verified(model, facts, written, chosen, calibrate) if check else []


def checked(
    model: nn.Module, format: str, *, dtype: str = "float32", preprocess: bool = False, **sizes: Any
) -> tuple[FileFacts, ExportFormat]:
    """The facts of a file and its format, with the checks of `export`."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: use one of {', '.join(FORMATS)}")
    chosen = FORMATS[format]
    chosen.need()
    if dtype not in chosen.dtypes:
        raise ValueError(f"dtype={dtype!r}: {format} files have {', '.join(chosen.dtypes)}")
    if preprocess and not chosen.preprocess:
        having = [name for name, each in FORMATS.items() if each.preprocess]
        raise ValueError(f"preprocess is not possible for {format}: use {' or '.join(having)}")
    return facts_of(model, dtype=dtype, preprocess=preprocess, **sizes), chosen


def _verified(
    model: nn.Module, facts: FileFacts, path: Path, chosen: ExportFormat, photos: Sequence[Any]
) -> list[Check]:
    """The comparisons of a written file.

    Raises:
        VerificationError: If one of them fails.
    """
    assert chosen.load is not None
    checks, failed = verify(
        model, facts, chosen.load(path, facts), photos=photos, least=chosen.least
    )
    if failed:
        lines = "\n".join(f"  {each}" for each in failed)
        raise VerificationError(
            f"{path.name}: the exported file differs from the model, so it was removed:\n{lines}"
        )
    return checks
