"""Files are written whole, with the usual permissions, and a full disk is one clear line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dafast import files
from dafast.files import (
    DiskFullError,
    explain,
    files_in_memory,
    remove_leftovers,
    whole_file,
    whole_files,
    write_file,
    writing,
)
from tests.full_disk import limited


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def one() -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(b"half")
            file.flush()
            raise error

    def several() -> None:
        with whole_files(tmp_path) as folder:
            (folder / "a").write_text("half")
            raise error

    write_file(tmp_path / "a", "before")
    for interrupted in (one, several):
        with pytest.raises(error):
            interrupted()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            (tmp_path / "usual").write_text("")
            write_file(tmp_path / "one", "")
            with whole_files(tmp_path / "folder") as folder:
                save_file({"x": torch.zeros(2)}, folder / "two")  # by itself for the owner only
        finally:
            os.umask(before)
        usual = (tmp_path / "usual").stat().st_mode
        assert (tmp_path / "one").stat().st_mode == usual
        assert (tmp_path / "folder" / "two").stat().st_mode == usual
        for path in ("usual", "one", "folder/two"):
            (tmp_path / path).unlink()


def test_a_refused_chmod_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    write_file(tmp_path / "a", "a")
    with whole_files(tmp_path) as folder:
        (folder / "b").write_text("b")
    assert names(tmp_path) == ["a", "b"]


def test_two_writers_of_one_process_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers that share a folder may both be process 1."""
    place, sources = tmp_path / "a.json", []
    replace = os.replace

    def note(source: Path, target: Path) -> None:
        sources.append(Path(source).name)
        if len(sources) == 1:  # another one writes while this is about to rename
            write_file(place, "second")
        replace(source, target)

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "replace", note)
    write_file(place, "first")
    assert len(set(sources)) == 2
    assert place.read_text() == "first"
    assert names(tmp_path) == ["a.json"]


def test_only_leftovers_of_dead_writers_are_removed(tmp_path: Path) -> None:
    dead = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from dafast.files import whole_file, whole_files\n"
        "with whole_file(sys.argv[1] + '/a'), whole_files(sys.argv[1]) as folder:\n"
        "    (folder / 'b').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", dead, str(tmp_path)], cwd=root, check=False)
    assert len(names(tmp_path)) == 2
    (tmp_path / ".mine.part").write_text("by another program")
    with whole_file(tmp_path / "c") as file, whole_files(tmp_path) as folder:
        (folder / "d").write_text("whole")
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 3
        file.write(b"whole")
    assert names(tmp_path) == [".mine.part", "c", "d"]


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*missing/a'"):
        write_file(tmp_path / "missing" / "a", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"'.*folder'"):
        write_file(tmp_path / "folder", "")
    assert names(tmp_path) == ["folder"]


def test_a_name_of_the_greatest_length_works(tmp_path: Path) -> None:
    write_file(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def _text(path: Path) -> None:
    write_file(path, "x" * 200_000)


def _numpy(path: Path) -> None:
    with whole_file(path) as file:
        np.save(file, np.zeros(200_000))


def _torch(path: Path) -> None:
    with whole_file(path) as file:
        torch.save(torch.zeros(200_000), file)


def _safetensors(path: Path) -> None:
    with whole_files(path.parent) as folder:
        save_file({"x": torch.zeros(200_000)}, folder / path.name)


@pytest.mark.parametrize("write", [_text, _numpy, _torch, _safetensors])
def test_a_full_disk_names_the_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Libraries report it without an error number, or as another error."""
    write_file(tmp_path / "a", "before")
    with limited(100_000), pytest.raises(DiskFullError) as caught:
        write(tmp_path / "a")
    text = str(caught.value)
    named = tmp_path if write is _safetensors else tmp_path / "a"
    assert text.startswith(f"cannot write {named}: ") and "Free some space" in text
    assert "\n" not in text
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"


def test_other_errors_stay_what_they_are() -> None:
    for error in (OSError(errno.EIO, "I/O error"), ValueError("no"), RuntimeError("os error 2")):
        with pytest.raises(type(error)) as caught, writing("a"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError("two  spaces.png: missing"), "two  spaces.png: missing"),
        (ValueError(), "ValueError"),
        (MemoryError(), "out of memory"),
        (MemoryError("3 GB"), "out of memory (3 GB)"),
        (FileNotFoundError(2, "No such file", "x"), "x: No such file"),
        (PermissionError(13, "No", b"x"), "x: No"),
        (OSError(5, "I/O error"), "[Errno 5] I/O error"),
    ],
)
def test_an_error_text_is_never_empty(error: Exception, text: str) -> None:
    assert explain(error) == text


def test_an_empty_error_is_explained_by_its_cause() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError from ValueError("the cause")
    assert explain(caught.value) == "the cause"


def test_windows_keeps_leftovers_and_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
    write_file(tmp_path / "a", "a")
    with whole_files(tmp_path) as folder:
        (folder / "b").write_text("b")
    assert names(tmp_path) == ["a", "b"]


def test_no_message_takes_the_text_of_an_exception_as_it_is():
    """It can be empty, as a MemoryError's is; `explain` never is."""
    package = Path(__file__).resolve().parent.parent / "dafast"
    bare = [
        f"{path.relative_to(package)}:{number}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if "({error})" in line
    ]
    assert not bare


def test_files_in_memory_leave_the_disk_alone(tmp_path):
    path = tmp_path / "a.bin"
    with files_in_memory() as files:
        with whole_file(path) as file:
            file.write(b"abcd")
            file.seek(0)
            file.write(b"x")
        with pytest.raises(KeyError), whole_file(tmp_path / "b.bin"):
            raise KeyError
    assert files == {path: b"xbcd"} and not list(tmp_path.iterdir())
    write_file(path, b"later")
    assert path.read_bytes() == b"later"
