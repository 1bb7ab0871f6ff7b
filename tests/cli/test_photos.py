"""Which photos `dafast run` finds, and what it calls their results."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from dafast.cli import main
from dafast.cli.photos import _key, find_photos, result_names
from tests.cli.helpers import contents, photo
from tests.forks import Fork

ROOT = Path(__file__).resolve().parents[2]


def test_one_bad_file_never_stops_the_rest(run, tmp_path, rng):
    folder = tmp_path / "in"
    good = [photo(folder / f"{name}.png", rng) for name in "abz"]
    (folder / "corrupt.jpg").write_bytes(good[0].read_bytes()[:300])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not meant")
    code, text = run(folder, tmp_path / "missing.jpg", str(tmp_path / "nothing*.png"))
    assert code == 1
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {f"{p.stem}_{kind}.png" for p in good for kind in ("depth", "color")}
    summary = text[text.rindex("3 written") :]
    for name in ("corrupt.jpg", "text.png", "empty.jpg", "missing.jpg", "nothing*.png"):
        assert summary.count(name) == 1, summary
    assert "5 failed" in summary
    assert "notes.txt" not in text
    assert "Traceback" not in text


def test_one_unreadable_input_never_stops_the_rest(run, tmp_path, rng, monkeypatch):
    good = photo(tmp_path / "in" / "good.png", rng)
    locked = tmp_path / "locked"
    locked.mkdir()
    iterdir = Path.iterdir

    def refuse(path):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    code, text = run(tmp_path / ("z" * 300 + ".jpg"), locked, good)
    assert code == 1
    assert "1 written" in text
    assert "2 failed" in text
    assert f"{locked}: Permission denied" in text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_no_text(tmp_path, rng, model_folder):
    folder = tmp_path / "in"
    source = photo(folder / "a.png", rng)
    source.rename(os.fsdecode(os.fsencode(folder) + b"/a\xff.png"))
    photo(folder / "b.png", rng)
    command = ["run", str(folder), "--out", str(tmp_path / "out"), "--model", model_folder]
    result = Fork(lambda: main(command), {})  # whose streams refuse what is no text
    assert result.wait(300) == 0, result.stderr
    assert "2 written" in result.stdout


def test_nothing_to_do_fails(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, text = run(tmp_path / "empty")
    assert code == 1
    assert "no pictures in this folder" in text
    assert not (tmp_path / "out").exists()


def test_same_names_stay_apart(run, tmp_path, rng):
    sources = [
        photo(tmp_path / "june" / "a.png", rng),
        photo(tmp_path / "july" / "a.png", rng),
        photo(tmp_path / "b.png", rng),
        photo(tmp_path / "b.jpg", rng),
        photo(tmp_path / "c.png", rng),
    ]
    code, text = run(*sources, "--npy")
    assert code == 0, text
    names = {p.name for p in (tmp_path / "out").glob("*.npy")}
    assert names == {"june_a.npy", "july_a.npy", "b_png.npy", "b_jpg.npy", "c.npy"}
    before = contents(tmp_path / "out")
    # another order gives the same names, so nothing is done again
    code, text = run(*reversed(sources), "--npy")
    assert code == 0
    assert "5 already there" in text
    assert contents(tmp_path / "out") == before


def test_result_names_are_unique_and_independent_of_order(rng):
    paths = [
        *("x/a.jpg", "x/a.png", "x/A.JPG", "y/a.jpg", "x/x/a.jpg", "y/x/a.jpg", "z/a_jpg.png"),
        *("x/x_a.png", "x/b.jpg", "x/é.jpg", "y/e\u0301.jpg", "x_x/a.jpg", "../x/a.jpg", "a"),
        *(f"{'deep/' * 100}{i}/c.png" for i in range(2)),
    ]
    names = dict(zip(paths, result_names(paths), strict=True))
    assert len({_key(n) for n in names.values()}) == len(paths)
    assert names["x/b.jpg"] == "b"
    assert max(len(os.fsencode(name)) for name in names.values()) <= 200
    for _ in range(5):
        order = [paths[i] for i in rng.permutation(len(paths))]
        assert dict(zip(order, result_names(order), strict=True)) == names


def test_a_photo_given_twice_is_done_once(run, tmp_path, rng, monkeypatch):
    source = photo(tmp_path / "in" / "a.png", rng)
    monkeypatch.chdir(tmp_path)
    code, text = run(source, tmp_path / "in", str(tmp_path / "in" / "*.png"), "in/../in/a.png")
    assert code == 0
    assert "1 written" in text
    assert set(contents(tmp_path / "out")) == {"a_depth.png", "a_color.png"}


def test_folders_and_patterns(tmp_path, rng):
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.png", ".hidden.png", ".git/x.png"):
        photo(tmp_path / name, rng, (8, 8))
    (tmp_path / "note.txt").touch()

    def found(*inputs, **options):
        result = find_photos([*map(str, inputs)], **options)
        assert not result.problems
        return [p.path.relative_to(tmp_path).as_posix() for p in result.photos]

    assert found(tmp_path) == ["a.JPG", "b.png"]
    assert found(tmp_path, recursive=True) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.png"]
    assert found(tmp_path / "*.png") == ["b.png"]
    assert found(tmp_path / "**" / "*.png") == ["b.png", "sub/deep/d.png"]
    weird = photo(tmp_path / "what[1].png", rng, (8, 8))  # a name that looks like a pattern
    assert found(weird) == ["what[1].png"]


def test_pictures_of_phones_are_not_left_out_of_a_folder(run, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.HEIC", "b.heif"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name in ("c.jpe", "d.avif"):
        (folder / name).write_bytes(b"no picture")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'dafast[heif]' (pillow_heif is not installed)" in run(folder)[1]
    registered = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    code, text = run(folder)
    assert code == 1
    assert len(registered) == 2  # for a HEIF photo, and for no other
    for name in ("a.HEIC", "b.heif", "c.jpe", "d.avif"):
        reason = "a damaged HEIC" if name[0] in "ab" else "no image format"
        assert f"{name}: cannot be read as an image ({reason}" in text


def test_results_beside_the_photos(run, tmp_path, rng):
    photo(tmp_path / "a.png", rng)
    for _ in range(2):
        code, text = run(tmp_path, "--side-by-side", out=tmp_path)
        assert code == 0, text
    pictures = {p.name for p in tmp_path.iterdir()}
    assert pictures == {"a.png", "a_depth.png", "a_color.png", "a_side.png"}


def names_in(out: Path) -> set[str]:
    return {p.name.removesuffix("_depth.png") for p in out.glob("*_depth.png")}


def test_a_link_has_the_name_that_was_given(run, tmp_path, rng):
    target = photo(tmp_path / "store" / "9f86d081.png", rng)
    for name in ("kitchen.png", "hall.jpg"):
        (tmp_path / "pics" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pics" / name).symlink_to(target)
    assert run(tmp_path / "pics")[0] == 0
    assert names_in(tmp_path / "out") == {"kitchen", "hall"}
    out = tmp_path / "more"
    assert run(tmp_path / "pics" / "hall.jpg", target, str(tmp_path / "p*/k*.png"), out=out)[0] == 0
    assert names_in(out) == {"kitchen", "hall", "9f86d081"}
    # No result replaces the file behind a link.
    (tmp_path / "pics" / "x.png").symlink_to(photo(tmp_path / "last" / "hall_color.png", rng))
    before = contents(tmp_path / "last")
    code, text = run(tmp_path / "pics", "--overwrite", out=tmp_path / "last")
    assert code == 1 and "itself one of the photos" in text
    assert (tmp_path / "last" / "hall_color.png").read_bytes() == before["hall_color.png"]


def test_photos_that_are_called_like_results_are_photos(run, tmp_path, rng):
    """RGB-D sets have the same names; only the mark in the file identifies results."""
    folder = tmp_path / "in"
    for name in ("0001_color.png", "0001_depth.png", "2_side.png"):
        photo(folder / name, rng)
    code, text = run(folder, out=folder)
    assert code == 0 and "3 written" in text and "left out" not in text
    assert {"0001_color_depth.png", "0001_depth_color.png", "2_side_depth.png"} <= {
        *os.listdir(folder)
    }
    before = contents(folder)
    code, text = run(folder, out=folder)
    assert code == 0 and "3 already there, 6 results of earlier runs left out" in text
    code, text = run(*sorted(folder.iterdir()), out=folder)  # as a shell expands *.png
    assert code == 0 and "3 already there, 6 results of earlier runs left out" in text
    assert contents(folder) == before


def test_results_below_the_photos_are_no_photos(run, tmp_path, rng):
    photo(tmp_path / "in" / "a.png", rng)
    for where in ("d1", "d1", "d2/deep"):
        code, text = run(tmp_path / "in", "--recursive", out=tmp_path / "in" / where)
        assert (code == 0 and "1 written" in text) or "1 already there" in text
    assert "2 results of earlier runs left out" in text
    code, text = run(tmp_path / "in" / "d1")
    assert code == 1 and "only results of dafast, no photos" in text
    assert (
        "1 result of an earlier run left out"
        in run(tmp_path / "in" / "d1" / "a_depth.png", tmp_path / "in" / "a.png")[1]
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="makes links and a pipe")
def test_what_a_folder_cannot_give_is_named(run, tmp_path, rng, monkeypatch):
    folder = tmp_path / "in"
    photo(folder / "good.png", rng)
    photo(folder / "sub" / "deep.png", rng)
    photo(tmp_path / "elsewhere" / "linked.png", rng)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "gone_folder").symlink_to(tmp_path / "nowhere")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / ".hidden").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    (folder / "locked").mkdir()
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    code, text = run(folder, "--recursive")
    assert code == 1 and "2 written" in text and "7 failed" in text
    for name, reason in {
        "gone.png": f"is a link to {tmp_path / 'nowhere.png'}, which does not exist",
        "gone_folder": "which does not exist",
        "linked": "a link to a folder, which is not followed",
        "loop": "a link to a folder, which is not followed",
        "round.png": "is a link to",
        "pipe.png": "is a pipe",
        "locked": "Permission denied",
    }.items():
        line = next(line for line in text.splitlines() if f"FAILED {folder / name}: " in line)
        assert reason in line
    code, text = run(folder, out=tmp_path / "flat")  # subfolders do not count
    assert code == 1 and "1 written" in text and "3 failed" in text
    # A pattern follows links, but not around in circles, and names the rest.
    code, text = run(f"{folder}/**/*.png", out=tmp_path / "pattern")
    assert names_in(tmp_path / "pattern") == {"good", "deep", "linked"}
    assert code == 1 and "3 written" in text and "4 failed" in text
    assert f"FAILED {folder / 'locked'}: Permission denied" in text


def test_results_lead_back_to_the_photos(run, tmp_path, rng):
    """Deep trees have the same names again and again: KITTI's drives, for example."""
    tree = tmp_path / "kitti"
    paths = [
        f"{drive}/image_0{i}/data/0000000{n}.png" for drive in "ab" for i in "23" for n in "01"
    ]
    for path in (*paths, "top.png"):
        photo(tree / path, rng, (20, 30))
    code, text = run(tree, "--recursive")
    assert code == 0, text
    expected = {path[:-4].replace("/", "_"): path for path in paths} | {"top": "top.png"}
    for name, path in expected.items():
        with Image.open(tmp_path / "out" / f"{name}_depth.png") as image:
            assert json.loads(image.text["dafast"])["photo_name"] == path
    before = contents(tmp_path / "out")
    shutil.move(tree, tmp_path / "moved")
    code, text = run(tmp_path / "moved", "--recursive")
    assert code == 0 and "9 already there" in text
    assert contents(tmp_path / "out") == before
    (tmp_path / "moved" / "other").mkdir()
    names = [(p.name, p.result) for p in find_photos([f"{tmp_path}/moved/a", f"{tmp_path}/moved/b"],
                                                      recursive=True).photos]  # fmt: skip
    assert set(names) == {(path, name) for name, path in expected.items() if name != "top"}


def test_brackets_in_a_folders_name(tmp_path, rng):
    weird = photo(tmp_path / "photos[1]" / "a1.png", rng, (8, 8))
    photo(tmp_path / "photos1" / "b.png", rng, (8, 8))

    def found(pattern):
        result = find_photos([f"{tmp_path}/{pattern}"])
        return [p.path for p in result.photos], result.problems

    assert found("photos[1]/*.png") == ([weird], [])
    assert found("photos[1]/a[0-9].png") == ([weird], [])
    assert found("p*[[]1]/*.png") == ([weird], [])
    assert found("photos[12]/*.png") == ([tmp_path / "photos1" / "b.png"], [])
    photos, problems = found("photos[2]/*.png")
    assert not photos and "[[] for a bracket" in problems[0][1]
    (tmp_path / "photos1" / "c.pcx").touch()
    assert found("photos1/*.pcx")[0] == [tmp_path / "photos1" / "c.pcx"]  # asked for by its suffix


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="there is no /dev/fd")
def test_photos_through_pipes(run, tmp_path, rng):
    """As a shell gives them for <(...)."""
    source = photo(tmp_path / "a.png", rng)
    with open(os.devnull) as place:  # the results have its number as their name, both times
        read = place.fileno()
        for done in ("2 written", "2 already there"):
            end, write = os.pipe()
            os.write(write, source.read_bytes())
            os.close(write)
            os.dup2(end, read)
            os.close(end)
            code, text = run(f"/dev/fd/{read}", source, "--side-by-side")
            assert code == 0 and done in text
    assert names_in(tmp_path / "out") == {"a", str(read)}
    for kind in ("depth", "color", "side"):
        with (
            Image.open(tmp_path / "out" / f"a_{kind}.png") as expected,
            Image.open(tmp_path / "out" / f"{read}_{kind}.png") as piped,
        ):
            assert piped.tobytes() == expected.tobytes()


@pytest.mark.skipif(os.name == "nt", reason="makes a socket")
def test_what_is_no_file_is_named(run, tmp_path, rng, monkeypatch):
    """Each once and on one line, also if its name is strange; devices are not read for ever."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    os.symlink("socket.png", "link.png")
    names = ("", "link.png", "socket.png", os.devnull, "/dev/zero", "new\nline", "a  b", "\x1b]a")
    code, text = run(*names, "a  b", "x*.png", "x*.png")
    assert code == 1 and "9 failed" in text
    failed = [line.removeprefix("  FAILED ") for line in text.splitlines() if "  FAILED " in line]
    assert sorted(failed) == sorted(
        (
            "'': an empty name, as of an unset variable",
            "link.png: is a socket",
            "socket.png: is a socket",
            f"{os.devnull}: is a device",
            "/dev/zero: is a device",
            "new\\nline: does not exist",
            "a  b: does not exist",
            "\\x1b]a: does not exist",
            "x*.png: no picture matches this pattern",
        )
    )


def test_a_list_is_no_photo(run, tmp_path, rng):
    photo(tmp_path / "a.png", rng)
    (tmp_path / "photos.txt").write_text("a.png\n")
    code, text = run(tmp_path / "photos.txt")
    assert code == 1 and f"for a list of photos: dafast run --out DIR @{tmp_path}" in text


def test_an_entry_without_access_never_stops_the_rest(run, tmp_path, rng, monkeypatch):
    """A folder may be listed by a user who may not look at its entries."""
    photo(tmp_path / "in" / "sub" / "good.png", rng)
    photo(tmp_path / "in" / "denied.png", rng)

    def deny(real):
        def checked(path):
            if path.name == "denied.png":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return checked

    for name in ("is_dir", "is_file"):
        monkeypatch.setattr(Path, name, deny(getattr(Path, name)))
    for arguments in ((tmp_path / "in", "--recursive"), (f"{tmp_path}/in/**/*.png",)):
        code, text = run(*arguments, "--overwrite")
        assert code == 1 and "1 written" in text and "1 failed" in text
        assert f"FAILED {tmp_path / 'in' / 'denied.png'}: Permission denied" in text
