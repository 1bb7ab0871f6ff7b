"""Lists the shards of a path or URL, and locates the members of samples in a tar."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dafast._warnings import PerformanceWarning, warn
from dafast.data.remote import (
    ShardError,
    cache_folder,
    expand_braces,
    fingerprint,
    is_gzipped,
    is_remote,
    is_url,
    list_folder,
    local_copy,
    name_of,
    place_of,
    plain_name,
    write_text,
)
from dafast.files import explain, file_kind

Places = list[tuple[int, int]]
"""(offset, size) of each column of a sample; `NOWHERE` for a missing one."""

IMAGE, DISPARITY, META, MASK, SKY = range(5)
"""The columns of a sample. The last one is in another tar."""

NOWHERE = (-1, 0)
SKY_SUFFIX = ".sky.tar"

_PICTURES = ("jpg", "jpeg", "webp", "png")  # the first of these that a sample has counts
_COLUMN = {
    **dict.fromkeys(_PICTURES, IMAGE),
    "disparity.png": DISPARITY,
    "json": META,
    "mask.png": MASK,
}
_LABEL = {DISPARITY: "disparity.png", META: "json"}
_LIST_SUFFIXES = (".csv", ".txt", ".json", ".jsonl")

_FETCHES = 8  # remote shards fetched at a time, to be scanned
_INDEX_FORMAT = 2  # of the cache: raise it when `_read_headers` finds other members
_MANY = 256  # local shards: from this number on their headers are cached, for a quick second start


def is_list(path_or_url: str) -> bool:
    """Whether a name is that of a list of pictures, not of a shard."""
    return path_or_url.partition("?")[0].lower().endswith(_LIST_SUFFIXES)


def expand_shards(
    path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], key: str = ""
) -> list[Path]:
    """Lists the tar files of a folder, a file, a pattern, a URL, or a sequence of these, sorted.

    A pattern is a glob, or has braces (`a-{00..12}.tar`), or is several, with `::` between them. A
    URL is one shard, has braces, or is a folder or glob of a store that lists its files. Masks of
    sky are left out.

    ``key`` is the setting that the path came from, for messages.
    """
    if isinstance(path_or_glob, Sequence) and not isinstance(path_or_glob, str):
        return [shard for item in path_or_glob for shard in expand_shards(item, key)]
    text = str(path_or_glob).removeprefix("file://")
    if not text:
        raise ShardError(f"{key or 'the path of the shards'} is empty: name a folder or file")
    if text.startswith("pipe:"):
        raise ShardError(f"{text}: commands are not run; name a file or URL")
    if "::" in text and not os.path.exists(text):
        return expand_shards([part for part in text.split("::") if part], key)
    if is_list(text):
        here = " on the machine that has the pictures" if is_url(text) else ""
        raise ShardError(
            f"{text} is a list of pictures; shards are needed here. Pack it{here}: "
            f"`dafast data pack {Path(text).name} --out FOLDER`"
        )
    if is_url(text):
        return _expand_url(text)
    path = Path(text).expanduser()
    if path.is_dir():
        shards = _one_of_each(shard for shard in path.iterdir() if _is_shard(shard))
        if not shards:
            raise ShardError(
                f"no shards (*.tar) in the folder {path}. "
                f"Make some with `dafast synth --scenes N --out {path}`, or name another folder."
            )
        return shards
    if path.is_file():
        return [path]
    if glob.has_magic(text):
        # `folder/*` also finds the JSON files that describe a set.
        others = (".json", ".jsonl", SKY_SUFFIX)
        shards = sorted(Path(m) for m in glob.glob(str(path)) if not m.endswith(others))
        if not shards:
            raise ShardError(
                f"no file matches the pattern {text!r}. Check the path (quote the pattern)."
            )
        return shards
    names = expand_braces(text)
    if names != [text]:
        return expand_shards(names, key)
    raise ShardError(
        f"no such folder or file: {path}. Make shards with `dafast synth --scenes N --out {path}`, "
        f"or {f'set {key} to where they are' if key else 'name another folder'}."
    )


def _expand_url(text: str) -> list[Path]:
    names = expand_braces(text)
    if names != [text]:
        return [shard for name in names for shard in _expand_url(name)]
    place = place_of(text)
    if "*" in name_of(place):
        shards = list_folder(place.parent, name_of(place))
    elif _is_shard(place):
        return [place]
    else:
        shards = _one_of_each(filter(_is_shard, list_folder(place, "*.t*")))
    shards = [shard for shard in shards if not shard.name.endswith(SKY_SUFFIX)]
    if not shards:
        raise ShardError(
            f"no shards (*.tar) at {text}. A server that does not list its files needs their "
            f"names: {text.partition('*')[0].rstrip('/')}/shard-{{000000..000099}}.tar"
        )
    return shards


def _one_of_each(shards: Iterable[Path]) -> list[Path]:
    """Sorted, without compressed shards that are also there unpacked."""
    every = sorted(shards)
    plain = {name_of(shard) for shard in every if not is_gzipped(shard)}
    return [shard for shard in every if not is_gzipped(shard) or plain_name(shard) not in plain]


def _is_shard(place: Path) -> bool:
    name = name_of(place)
    plain = plain_name(place)
    return plain.endswith(".tar") and not plain.endswith(SKY_SUFFIX) and not name.startswith(".")


def sky_path(shard: Path) -> Path:
    """The file with the masks of a shard's sky."""
    return shard.with_name(plain_name(shard).removesuffix(".tar") + SKY_SUFFIX)


def scan_all(shards: Sequence[Path], labeled: bool) -> Iterator[dict[str, Places]]:
    """`_scan` of each; those behind URLs are fetched several at a time."""
    if not any(map(is_remote, shards)):
        for shard in shards:
            yield _scan(shard, labeled, len(shards) >= _MANY)
        return
    with ThreadPoolExecutor(_FETCHES) as pool:
        yield from pool.map(lambda shard: _scan(shard, labeled), shards)


_REMEDY = "Delete it and write it again (`dafast synth` writes missing shards), or copy it again."


def _scan(shard: Path, labeled: bool, keep: bool = False) -> dict[str, Places]:
    """Locates the members of a shard and checks that none is missing."""
    samples, remedy = headers(shard, keep), _REMEDY
    required = {IMAGE: "jpg", **(_LABEL if labeled else {})}
    for key, place in samples.items():
        for column, suffix in required.items():
            if place[column][0] < 0:
                if column != IMAGE and all(p[DISPARITY][0] < 0 for p in samples.values()):
                    remedy = (
                        "It is unlabeled: `dafast label` writes shards with a teacher's labels."
                    )
                raise ShardError(f"the shard {shard} has no member {key}.{suffix}. {remedy}")
    return samples


def headers(shard: Path, keep: bool = False) -> dict[str, Places]:
    """Key -> (offset, size) per column of a tar, (-1, 0) where absent.

    The result is cached for a remote shard, and for a local one if `keep` is true.

    Raises:
        ShardError: If it is damaged, or compressed and has no fixed offsets.
    """
    if is_gzipped(shard):
        raise ShardError(
            f"the shard {shard} is compressed, but its samples are read in any order: unpack it "
            f"(gunzip {name_of(shard)}). Pictures are compressed themselves, so it grows little. "
            "`dafast label` and `dafast data sky` read it without unpacking."
        )
    remote = is_remote(shard)
    if not (remote or keep):
        return _read_headers(shard, shard)
    try:
        known = fingerprint(shard)
    except OSError as error:
        raise ShardError(
            f"the shard {shard} cannot be read: {error.strerror or explain(error)}."
        ) from error
    digest = hashlib.sha256(f"{_INDEX_FORMAT} {known}".encode()).hexdigest()[:40]
    kept = cache_folder() / "shards" / digest[:2] / f"{digest}.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        return {
            key: list(zip(place[::2], place[1::2], strict=True)) for key, place in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # missing or damaged
    with local_copy(shard) as copy:
        samples = _read_headers(copy, shard)
    flat = {key: [n for pair in place for n in pair] for key, place in samples.items()}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(flat, separators=(",", ":")))
    except OSError as error:
        warn(PerformanceWarning, f"{kept} cannot be written: {explain(error)}")
    return samples


def _check_tar(path: Path, shard: Path) -> None:
    """Checks that a local file is a tar.

    Raises:
        ShardError: If it is not a tar, with the kind of file that it is, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ShardError(
            f"the shard {shard} cannot be read: {error.strerror or explain(error)}."
        ) from error
    if not head:
        raise ShardError(f"the shard {shard} is an empty file. {_REMEDY}")
    kind = file_kind(head)
    if kind == "zeros":  # the end of an archive without members
        return
    if kind in ("a tar archive", ""):
        if len(head) < tarfile.BLOCKSIZE:
            raise ShardError(f"the shard {shard} is truncated. {_REMEDY}")
        with contextlib.suppress(tarfile.HeaderError):
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            return
    remedies = {
        "a text file": "If it is a list of pictures give it the suffix .csv",
        "a JSON file": "If it is a list of pictures give it the suffix .json or .jsonl",
        "a gzip archive": "If it is a compressed tar unpack it with `gunzip`",
    }
    remedy = remedies.get(kind, "Name a tar, or a folder of tars")
    raise ShardError(
        f"{shard} is not a shard: it is {kind or 'no tar file'}; shards are tar files. {remedy}."
    )


def _read_headers(path: Path, shard: Path) -> dict[str, Places]:
    """Reads the headers of a local tar; `shard` is its name in messages."""
    samples: dict[str, Places] = {}
    pictures: dict[str, int] = {}  # which of `_PICTURES` a sample has
    _check_tar(path, shard)
    try:
        length = path.stat().st_size
        end = 0
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if end > length:
                    raise ShardError(
                        f"the shard {shard} is truncated inside {member.name}. {_REMEDY}"
                    )
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                column = _COLUMN.get(suffix.lower())
                if column is None:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if column == IMAGE:
                    rank = _PICTURES.index(suffix.lower())
                    if pictures.setdefault(key, rank) < rank:
                        continue
                    pictures[key] = rank
                samples.setdefault(key, [NOWHERE] * 4)[column] = (member.offset_data, member.size)
        # A cut exactly between two members leaves a tar that reads without complaint and has lost
        # samples; only the zero block that ends every archive is missing.
        if length < end + 512:
            raise ShardError(
                f"the shard {shard} is truncated: it has no end-of-archive block. {_REMEDY}"
            )
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(
            f"the shard {shard} is not a whole tar file ({explain(error)}). {_REMEDY}"
        ) from error
    except OSError as error:
        raise ShardError(
            f"the shard {shard} cannot be read: {error.strerror or explain(error)}."
        ) from error
    return samples
