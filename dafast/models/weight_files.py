"""Reads files with weights and finds the network in a trainer's file.

Only tensors and plain containers are unpickled (`read_file`); `unwrap` removes the wrappings.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import explain, file_kind
from .conversion import ANCHORS, LAYOUTS, detect_layout

logger = logging.getLogger("dafast")

SHOWN = 5  # keys listed in an error
# Errors of PyTorch's unpickler on truncated or changed files.
_DAMAGE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


class CheckpointError(ValueError):
    """Weights could not be found or read, or do not belong to the model."""


class _Ignored:
    """Replaces an object that is no weight and that PyTorch's own list does not allow."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Values that trainers save next to weights. Each is read as `_Ignored`: none of them is made.
_HARMLESS: list[Any] = [
    (_Ignored, name)
    for name in (
        *(
            f"numpy.{core}.multiarray.{function}"
            for core in ("core", "_core")
            for function in ("scalar", "_reconstruct")
        ),
        "numpy.dtype",
        "numpy.ndarray",
        "argparse.Namespace",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePosixPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "datetime.datetime",
    )
]


# ------------------------------------------------------------------------------- reading a file


def _describe_file(path: Path) -> str:
    """Describes a file without readable weights by its first bytes."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            return "a truncated PyTorch file (a zip archive without its end)"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript archive, which holds code: save the model's state_dict"
        if names and all(name.endswith(".npy") for name in names):
            return "a NumPy archive (.npz)"
        return "a zip archive, but no PyTorch checkpoint"
    return file_kind(head) or (
        f"neither safetensors nor a PyTorch file (it starts with {head[:8]!r})"
    )


def _safetensors_problem(path: Path) -> str | None:
    """Why a safetensors file is incomplete; None if it is complete or of another format.

    The format: length of the header (8 bytes, little endian), a JSON header, the data.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
        if len(head) < 9 or head[8:9] != b"{":
            return None
        (length,) = struct.unpack("<Q", head[:8])
        if 8 + length > size:
            return f"a truncated safetensors file (its header says that it has {length} bytes)"
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            end = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "a damaged safetensors file (unreadable header)"
    if 8 + length + end > size:
        return f"a truncated safetensors file ({size} of {8 + length + end} bytes)"
    return None


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**32


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads one file, whose contents and not whose name decide the format.

    Returns:
        Its entries (of a PyTorch file: as saved, see `unwrap`), and the metadata of safetensors.

    Raises:
        CheckpointError: If it is unreadable, truncated, or holds code.
    """
    try:
        if _is_safetensors(path):
            if problem := _safetensors_problem(path):
                raise CheckpointError(f"{path}: {problem}")
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="pt") as file:
                    names = file.keys()
                    return {k: file.get_tensor(k) for k in names}, file.metadata() or {}
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path}: a damaged safetensors file ({explain(error)})"
                ) from error
        zipped = zipfile.is_zipfile(path)
        with open(path, "rb") as file_head:
            magic = file_head.read(2)
        if not zipped and not (magic[:1] == b"\x80" and magic[1:] in b"\x02\x03\x04\x05"):
            raise CheckpointError(f"{path}: {_describe_file(path)}")
        try:
            # Only tensors and plain containers: a checkpoint must never run code. mmap needs the
            # zip format; files written before PyTorch 1.6 have another.
            # Of a path, torch.load would read the format from the name .safetensors.
            named = path.suffix == ".safetensors"
            with torch.serialization.safe_globals(_HARMLESS), open(path, "rb") as file:
                source: Any = file if named else path
                mmap = None if named else zipped or None
                data = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            if "Unsupported" in str(error) or "Weights only load failed" in str(error):
                raise CheckpointError(
                    f"{path}: refused, because it holds Python objects other than tensors, which "
                    f"could run code when loaded, or is damaged ({_refused(error)}). Save only "
                    "the model's state_dict, or use safetensors. To convert a file that you "
                    "trust, read it with torch.load(path, weights_only=False)."
                ) from error
            raise CheckpointError(f"{path}: a damaged pickle ({explain(error)})") from error
        except _DAMAGE as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path}: {_describe_file(path)}, truncated or damaged ({first})"
            ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a dict of tensors")
    return dict(data), {}


def _refused(error: Exception) -> str:
    match = re.search(
        r"Unsupported (?:global: GLOBAL|\w+) [\w.]+|GLOBAL [\w.]+|Unsupported [^\n]{0,80}(?!\w)",
        str(error),
    )
    return match[0] if match else str(error).splitlines()[0]


# ---------------------------------------------------------------------------- finding the network


@dataclass
class Weights:
    """The tensors of one network.

    Attributes:
        tensors: By name, without the prefixes of wrappers.
        names: Names of all tensors that were saved together, as in the file.
        place: The entries and prefixes that lead to the network, joined by dots.
        left_out: Names of tensors that were saved together with the network, but outside of it.
        scores: Names of entries next to the weights that a metric model has, such as ``rmse``.
        is_training_state: Whether they are from a checkpoint of dafast's own training.
        metadata: Of a safetensors file.
    """

    tensors: dict[str, Tensor]
    names: list[str]
    place: str = ""
    left_out: list[str] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)
    is_training_state: bool = False
    metadata: dict[str, str] = field(default_factory=dict)


_DEPTH = 4  # levels of wrapping
# Parts of names that come from wrappers: torch.compile, FSDP, activation checkpointing.
_INFIXES = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_AVERAGES = ("ema", "shadow", "averaged", "swa")
# Entries of one network, in order of preference.
_USUAL = ("", "model", "state_dict", "model_state_dict", "module", "params", "net", "network")
_STUDENTS = ("student",)
_COUNTS = ("total_ops", "total_params")  # thop's, of each module
_SCORES = re.compile(
    r"(?:.*_)?(?:abs_?rel|sq_?rel|rmse|rmse_log|log_?10|silog|d1|a1|delta_?1|max_?depth)",
    re.IGNORECASE,
)


@dataclass
class _Found:
    """A network in a file: the entries (and prefixes) that lead to it, and its tensors."""

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    names: list[str]
    left_out: list[str]

    @property
    def place(self) -> str:
        return ".".join(self.path)

    def rank(self) -> tuple[int, int, int]:
        """Sort key: the smallest is the one to load."""
        words = [word for part in self.path for word in part.lower().split("_")]
        whole = detect_layout(self.tensors, LAYOUTS) is not None
        if any(word in _AVERAGES for word in words):
            return (not whole, 0, 0)
        last = self.path[-1].lower() if self.path else ""
        if all(part.lower() in _USUAL for part in self.path):
            return (not whole, 1, min((_USUAL.index(p.lower()) for p in self.path), default=0))
        return (not whole, 2 if last in _STUDENTS or "student" in words else 3, 0)


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """The prefix of the cls token's name, for each network in a flat dict."""
    found = []
    for name in names:
        anchor = next((a for a in ANCHORS if name == a or name.endswith("." + a)), None)
        if anchor is not None:
            prefix = name.removesuffix(anchor)
            whole = re.sub(r"(^|\.)backbone\.$", r"\1", prefix)
            if whole != prefix and any(key.startswith(f"{whole}depth_head.") for key in names):
                prefix = whole  # a DINOv2 under "backbone." next to a decoder: Distill-Any-Depth
            found.append(prefix)
    return found


def _networks(data: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[_Found]:
    """Every network in nested dicts."""
    names = [str(k) for k, v in data.items() if isinstance(v, Tensor)]
    flat = {_INFIXES.sub("", str(k)): v for k, v in data.items() if isinstance(v, Tensor)}
    # A single number is no weight of any network: a score, an epoch, a count of averages.
    flat = {k: v for k, v in flat.items() if v.ndim or "." in k}
    flat = {k: v for k, v in flat.items() if k.split(".")[-1] not in _COUNTS}
    prefixes = _prefixes(flat)
    for prefix in prefixes:
        others = tuple(other for other in prefixes if other and other != prefix)
        inner = {
            name.removeprefix(prefix): value
            for name, value in flat.items()
            if name.startswith(prefix) and not (others and name.startswith(others))
        }
        outside = [n for n in flat if prefix and not n.startswith((prefix, *others))]
        yield _Found((*path, *prefix.split(".")[:-1]), inner, names, outside)
    if len(path) < _DEPTH:
        for key, value in data.items():
            if isinstance(value, Mapping):
                yield from _networks(value, (*path, str(key)))


def _scores(data: Mapping[Any, Any], depth: int = 0) -> list[str]:
    """Names of numbers next to the weights that speak of a metric model."""
    found = []
    for key, value in data.items():
        if isinstance(value, Mapping) and depth < _DEPTH:
            found += _scores(value, depth + 1)
        elif value is not None and isinstance(key, str) and _SCORES.fullmatch(key):
            found.append(key)
    return list(dict.fromkeys(found))


def _other_tensors(data: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The largest dict of tensors in nested dicts."""
    best = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    for value in data.values():
        if isinstance(value, Mapping):
            inner = _other_tensors(value)
            best = inner if len(inner) > len(best) else best
    return best


def unwrap(data: Mapping[str, Any], label: str) -> Weights:
    """Finds the network in a trainer's file, without the prefixes of DDP, compile and others.

    A network is found by its cls token, at any depth and behind any prefix. Of several the moving
    average is preferred (``ema``), then the usual names (``model``, ``state_dict``, ``params``,
    ``net``, ...), then ``student``. A file without a network gives its largest dict of
    tensors, for the message about it.

    Raises:
        CheckpointError: If there are no tensors, or several networks of which none is preferred.
    """
    found = sorted(_networks(data), key=_Found.rank)
    if not found:
        other = _other_tensors(data)
        if not other or "param_groups" in data:
            entries = ", ".join(map(str, list(data)[:SHOWN])) or "nothing"
            kind = "an optimizer state" if "param_groups" in data else "no state_dict"
            if any(isinstance(value, _Ignored) for value in data.values()):
                kind += " of tensors (NumPy arrays and the like are not read)"
            raise CheckpointError(f"{label}: {kind}; it holds: {entries}")
        return Weights(other, list(other))
    first = found[0]
    places = ", ".join(repr(other.place) for other in found)
    if len(found) > 1 and found[1].rank() == first.rank():
        raise CheckpointError(
            f"{label}: holds several networks ({places}): save the state_dict of one to a file"
        )
    if len(found) > 1:
        logger.info("%s: holds %s; %r is read", label, places, first.place)
    return Weights(
        first.tensors,
        first.names,
        first.place,
        first.left_out,
        _scores(data),
        is_training_state={"model", "optimizer", "position", "config"} <= set(data),
    )
