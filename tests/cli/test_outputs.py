"""What `dafast run` does with files that are there already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import dafast
from tests.cli.helpers import contents, photo
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parents[2]


def test_overwriting_replaces_all_our_results_of_the_photo(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    assert run(source, "--npy", "--side-by-side", "--size", "42")[0] == 0
    before = contents(tmp_path / "out")
    code, text = run(source, "--overwrite")
    assert code == 0 and "warning" not in text
    after = contents(tmp_path / "out")
    assert before.keys() == after.keys() and not before.items() & after.items()
    assert run(source, "--npy", "--side-by-side")[1].count("already there") == 1
    assert contents(tmp_path / "out") == after


def test_foreign_files_next_to_new_results_are_named(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    assert run(source, "--npy", "--side-by-side")[0] == 0
    out = tmp_path / "out"
    for name in ("a_depth.png", "a_color.png"):
        (out / name).unlink()
    before = contents(out)
    code, text = run(source, "--size", "42")
    assert code == 0
    for name in ("a.npy", "a_side.png"):
        assert f"warning: {out / name} is not of the same prediction as a_depth.png" in text
        assert (out / name).read_bytes() == before[name]
    (out / "a.npy").write_bytes(b"the user's own")
    code, text = run(source, "--overwrite")
    assert code == 0 and text.count("warning") == 1
    assert (out / "a.npy").read_bytes() == b"the user's own"


def test_an_array_of_an_earlier_run_is_noticed(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    assert run(source, "--size", "42")[0] == 0
    np.save(tmp_path / "out" / "a.npy", rng.random((37, 53), np.float32))
    assert run(source, "--overwrite")[0] == 0  # replaces the pictures, and leaves the array
    code, text = run(source, "--npy")
    assert code == 1
    assert "a.npy exists and does not belong to a_depth.png" in text
    assert run(source, "--npy", "--overwrite")[0] == 0
    code, text = run(source, "--npy")
    assert code == 0
    assert "1 already there" in text


def test_what_is_there_is_kept(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    out = tmp_path / "out"
    assert run(source)[0] == 0
    before = contents(out)

    code, text = run(source)  # again: nothing to do, and no error
    assert code == 0
    assert "1 already there" in text
    assert contents(out) == before

    code, text = run(source, "--side-by-side")  # what is missing is added
    assert code == 0
    assert set(contents(out)) - set(before) == {"a_side.png"}
    (out / "a_side.png").unlink()

    other = photo(tmp_path / "other" / "a.png", rng)
    for arguments, named in (
        ([other], "photo"),
        ([source, "--palette", "inferno"], "palette"),
        ([source, "--size", "42"], "size"),
        ([source, "--fit", "official"], "fit"),
    ):
        code, text = run(*arguments)
        assert code == 1
        assert f"different {named}" in text
        assert "--overwrite" in text
        assert contents(out) == before

    assert run(other, "--overwrite")[0] == 0
    after = contents(out)
    assert set(after) == set(before)
    assert all(after[name] != before[name] for name in before)


def test_other_weights_are_noticed(run, tmp_path, rng):
    source = photo(tmp_path / "a.png", rng)
    assert run(source)[0] == 0
    torch.manual_seed(int(rng.integers(2**31)))
    dafast.DepthAnything(TINY).save_pretrained(tmp_path / "other")
    code, text = run(source, model=str(tmp_path / "other"))
    assert code == 1
    assert "different weights" in text


def test_foreign_files_are_kept(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    foreign = photo(tmp_path / "out" / "a_color.png", rng)
    before = foreign.read_bytes()
    code, text = run(source)
    assert code == 1
    assert "not from dafast" in text
    assert contents(tmp_path / "out") == {"a_color.png": before}


def test_a_result_that_cannot_be_read_is_not_called_foreign(run, tmp_path, rng, monkeypatch):
    source = photo(tmp_path / "a.png", rng)
    assert run(source)[0] == 0
    result, open_path = tmp_path / "out" / "a_depth.png", Path.open

    def refuse(path, *arguments, **options):
        if path == result:
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        code, text = run(source)
    assert code == 1 and f"{source}: {result}: Permission denied\n" in text
    result.write_bytes(b"x")  # shorter than the end of a PNG
    assert "not from dafast; --overwrite replaces it" in run(source)[1]
    result.unlink()
    result.mkdir()
    for options in ((), ("--overwrite",)):  # which cannot replace a folder
        code, text = run(source, *options)
        assert code == 1 and f"{result} is a folder; remove it or choose another --out\n" in text


def test_photos_are_never_overwritten(run, tmp_path, rng):
    source = photo(tmp_path / "a.png", rng)
    named_alike = photo(tmp_path / "a_color.png", rng)
    before = named_alike.read_bytes()
    code, text = run(source, named_alike, "--overwrite", out=tmp_path)
    assert code == 1
    assert "itself one of the photos" in text
    assert named_alike.read_bytes() == before
