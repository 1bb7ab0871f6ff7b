"""LSUN: scenes of ten categories, each in an LMDB of compressed pictures.

`CATEGORY_train_lmdb/data.mdb` has keys of 40 hexadecimal digits and a picture's file as value, its
shorter side 256 pixels. The authors' README calls the files JPEG, their own tool names them .webp;
any format that Pillow reads is accepted.

Source: https://github.com/fyu/lsun (README.md, data.py: one LMDB for each category, opened
read-only, key and file). The counts are those of the TensorFlow data sets' catalogue.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dafast.data.readers._pictures import PictureReader
from dafast.data.sources import SourceError
from dafast.files import explain


@functools.cache
def _open(folder: Path) -> Any:
    import lmdb  # type: ignore[import-untyped,unused-ignore]

    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise SourceError(f"{folder} is no LMDB that can be read: {explain(error)}") from error


def _find(root: Path) -> Iterator[str]:
    for path in root.rglob("data.mdb"):
        folder = path.parent.relative_to(root).as_posix()
        with _open(path.parent).begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                yield f"{folder}/{key.decode('ascii', 'backslashreplace')}"


def _read(root: Path, name: str) -> bytes:
    folder, _, key = name.rpartition("/")
    with _open(root / folder).begin() as transaction:
        value = transaction.get(key.encode())
    if value is None:
        raise SourceError(f"no picture {key} in {folder}")
    return bytes(value)


def _file(root: Path, name: str) -> Path:
    return root / name.rpartition("/")[0] / "data.mdb"


READER = PictureReader(
    name="lsun",
    license="not found stated; the pictures belong to their authors",
    published="9,895,373 for training, 300 more in each of 10 categories (TensorFlow Datasets)",
    counts=((9_895_373, 9_895_373), (9_898_373, 9_898_373)),
    layout="""
CATEGORY_train_lmdb/data.mdb
""",
    find=_find,
    read=_read,
    file=_file,
    requires="lmdb",
)
