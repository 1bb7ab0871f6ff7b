"""Files with weights: where they are, and what is in them.

What a user names is a preset, an id of the hub, a file or a folder (`locate`). Only tensors are
ever unpickled (`read_file`); `dafast.models.checkpoint` makes models of them.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import PRESETS, ModelConfig
from .conversion import preset_from_name
from .hub import WEIGHT_FILES, HubError, HubOptions, fetch_file, fetch_model, shard_names

PACKAGED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Folder of the weights shipped inside the package, one folder per preset."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SHOWN = 5  # keys listed in an error
# What the unpickler of PyTorch raises, one by one, on files that were cut or changed.
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


# ------------------------------------------------------------------------------- reading a file


def _what_is_it(path: Path) -> str:
    """Guesses from its first bytes what a file that holds no readable weights is instead."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, as a failed download leaves it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; `git lfs pull` fetches the file itself"
    for magic, kind in (
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"GIF8", "a GIF image"),
        (b"RIFF", "a RIFF file (WebP image, audio or video)"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"%PDF", "a PDF document"),
        (b"GGUF", "a GGUF model"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy array"),
    ):
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            return "a truncated PyTorch file (a zip archive without its end)"
        return "a zip archive, but no PyTorch checkpoint"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if text.startswith(b"{"):
        return "a JSON file"
    if head[:1] == b"\x80":
        return "a pickle"
    return f"neither safetensors nor a PyTorch file (it starts with {head[:8]!r})"


def _safetensors_problem(path: Path) -> str | None:
    """Why a file is no whole safetensors file, or None if it is one (or does not claim to be).

    The format: length of the header (8 bytes, little endian), a JSON header, the data.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
        if len(head) < 9 or head[8:9] != b"{":
            return None
        (length,) = struct.unpack("<Q", head[:8])
        if 8 + length > size:
            return f"a truncated safetensors file (its header alone has {length} bytes)"
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
    """Reads one file by its contents, whatever it is called.

    Returns:
        What it holds (for a PyTorch file not yet unwrapped), and safetensors' metadata.

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
                raise CheckpointError(f"{path}: a damaged safetensors file ({error})") from error
        zipped = zipfile.is_zipfile(path)
        with open(path, "rb") as file_head:
            magic = file_head.read(2)
        if not zipped and not (magic[:1] == b"\x80" and magic[1:] in b"\x02\x03\x04\x05"):
            raise CheckpointError(f"{path}: {_what_is_it(path)}")
        try:
            # Only tensors and plain containers: a checkpoint must never run code. mmap needs the
            # zip format; files written before PyTorch 1.6 have another.
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
        except pickle.UnpicklingError as error:
            if "Unsupported" in str(error) or "Weights only load failed" in str(error):
                raise CheckpointError(
                    f"{path}: refused, because it holds Python objects other than tensors, which "
                    f"could run code when loaded, or is damaged ({_refused(error)}). Save only "
                    "the model's state_dict, or use safetensors."
                ) from error
            raise CheckpointError(f"{path}: a damaged pickle ({error})") from error
        except _DAMAGE as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path}: {_what_is_it(path)}, truncated or damaged ({first})"
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


_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def unwrap(data: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """Finds the state_dict in what a trainer saved, without the prefixes of DDP and compile.

    Raises:
        CheckpointError: If there is none.
    """
    while not any(isinstance(value, Tensor) for value in data.values()):
        inner = next((data[k] for k in _WRAPPERS if isinstance(data.get(k), Mapping)), None)
        if inner is None:
            found = ", ".join(map(str, list(data)[:SHOWN])) or "nothing"
            kind = "an optimizer state" if "param_groups" in data else "no state_dict"
            raise CheckpointError(f"{label}: {kind}; it holds: {found}")
        data = inner
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): v for name, v in tensors.items()}
                changed = True
    return tensors


# ---------------------------------------------------------------------------- finding the files


@dataclass
class Source:
    """Where the weights of a model are, and what is known of it.

    Attributes:
        label: What the user asked for, for messages.
        files: One, or all shards.
        config: Path of the config.json, if there is one.
        name: Published file name or hub id, which may tell the preset.
        preset: What the user named, if it was a preset.
    """

    label: str
    files: list[Path]
    config: Path | None = None
    name: str = ""
    preset: ModelConfig | None = None


def _folder_source(folder: Path) -> Source:
    config = folder / "config.json"
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        others = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
        if len(others) > 1:
            names = ", ".join(p.name for p in others[:SHOWN])
            raise CheckpointError(f"{folder}: several files with weights ({names}): name one")
        if not others:
            holds = ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "nothing"
            raise CheckpointError(
                f"{folder}: no weights: none of {', '.join(WEIGHT_FILES)}, nor another "
                f"{', '.join(_SUFFIXES)} file. The folder holds: {holds}"
            )
        found = others[0]
    source = _file_source(found)
    source.label = str(folder)
    source.config = config if config.is_file() else None
    # A clone of a hub repository keeps its name in the folder's.
    source.name = found.name if preset_from_name(found.name) else folder.name
    return source


def _file_source(path: Path) -> Source:
    if path.name.endswith(".index.json"):
        files = [path.parent / name for name in _shards(path)]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise CheckpointError(f"{path}: shards are missing: {', '.join(absent)}")
    else:
        match = re.search(r"-\d{5}-of-(\d{5})\.\w+$", path.name)
        if match and int(match[1]) > 1:
            raise CheckpointError(
                f"{path}: one of {int(match[1])} shards: load the .index.json that names them all, "
                "or the folder with it"
            )
        files = [path]
    config = path.parent / "config.json"
    named = path.name in WEIGHT_FILES and config.is_file()
    return Source(str(path), files, config if named else None, path.name)


def _shards(index: Path) -> list[str]:
    try:
        return shard_names(index)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def locate(name_or_path: str | Path, filename: str | None, options: HubOptions) -> Source:
    """Finds, and downloads where needed, what `load_pretrained` was asked for."""
    if name_or_path == "":  # as a path it would be the current folder
        raise CheckpointError(
            "the name is empty: give a hub id, a file, a folder or one of the presets "
            f"{', '.join(PRESETS)}"
        )
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in PRESETS and filename is None:
        preset = PRESETS[name]
        if (PACKAGED_WEIGHTS / name).is_dir():
            source = _folder_source(PACKAGED_WEIGHTS / name)
            source.preset = preset
            return source
        if not preset.hub_id:
            raise CheckpointError(
                f"{name!r}: this installation of dafast has no weights for it "
                f"(they belong in {PACKAGED_WEIGHTS / name}); they are not trained yet, or the "
                "package was built without them"
            )
        file = fetch_file(preset.hub_id, preset.hub_file, options, config=name)
        return Source(name, [file], None, preset.hub_file, preset)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _file_source(path / filename) if filename else _folder_source(path)
    if path.exists():
        return _file_source(path)
    looks_local = (
        isinstance(name_or_path, Path)
        or not _HUB_ID.fullmatch(name)
        or name.endswith(_SUFFIXES)
        or name.startswith(".")
    )
    if looks_local:
        hint = ""
        if isinstance(name_or_path, str) and not path.suffix and len(path.parts) == 1:
            hint = f", and no preset is called so; there are: {', '.join(PRESETS)}"
        raise CheckpointError(f"{name}: no such file or folder{hint}")
    published = preset_from_name(name)
    try:
        if filename is not None:
            file = fetch_file(name, filename, options)
            return Source(f"{name}/{filename}", [file], None, filename)
        if published is not None and published.hub_id.lower() == name.lower():
            file = fetch_file(name, published.hub_file, options, config=published.name)
            return Source(name, [file], None, name, published)
        config, files = fetch_model(name, options)
    except HubError as error:
        raise CheckpointError(f"{error} (There is no local file or folder {name!r}.)") from error
    return Source(name, files, config, name)
