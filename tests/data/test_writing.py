"""Files that are written by one process, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dafast.data.writing import claim, read_failures, write_failures


def test_two_never_write_one(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    with claim(target) as first:
        assert first is not None
        first.write(b"whole")
        with claim(target) as second:
            assert second is None
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    with claim(target) as third:
        assert third is None

    def fail() -> None:
        with claim(tmp_path / "b.tar") as failed:
            assert failed is not None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with claim(tmp_path / "b.tar") as again:
        assert again is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_what_a_killed_process_left_is_no_claim(tmp_path: Path) -> None:
    (tmp_path / ".a.tar.part").write_bytes(b"half of a longer shard")
    with claim(tmp_path / "a.tar") as file:
        assert file is not None
        file.write(b"whole")
    assert (tmp_path / "a.tar").read_bytes() == b"whole"


def test_failures_are_kept_beside_the_shard(tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    assert read_failures(target) == []
    failures = [("a.tar/x", 'a "reason"'), ("a.tar/y", "zwei\nZeilen")]
    write_failures(target, failures)
    assert read_failures(target) == failures
    write_failures(target, [])
    assert list(tmp_path.iterdir()) == []
