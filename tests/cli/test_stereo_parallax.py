"""`dafast stereo` and `dafast parallax`: files, exit codes, and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dafast.cli import main
from dafast.cli import parallax as parallax_command
from dafast.cli import stereo as stereo_command
from dafast.views import LAYOUTS, PATHS
from tests.cli.helpers import contents, photo, save_model
from tests.tiny import tiny


@pytest.fixture
def call(model_folder, capsys):
    def call(*arguments, model=model_folder) -> tuple[int, str]:
        command = [*map(str, arguments), "--model", model, "--dtype", "float32"]
        code = main([*command, "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_the_parsers_know_all_layouts_and_paths():
    assert tuple(LAYOUTS) == stereo_command.LAYOUTS and parallax_command.PATHS == PATHS


@pytest.mark.slow
def test_layouts_have_names_that_players_know(call, rng, tmp_path):
    photo(tmp_path / "a.png", rng)
    names = set()
    for layout in LAYOUTS:
        command = ["stereo", tmp_path / "a.png", "--out", tmp_path / "out", "--layout", layout]
        code, text = call(*command)
        assert code == 0 and "1 written" in text
        new = set(contents(tmp_path / "out")) - names
        assert new == {f"a{end}.jpg" for end in LAYOUTS[layout]}
        names |= new
    sizes = {p.name: Image.open(p).size for p in (tmp_path / "out").iterdir()}
    assert sizes["a_SBS.jpg"] == sizes["a_RL.jpg"] == (106, 37)
    assert sizes["a_half_SBS.jpg"] == (52, 37) and sizes["a_TB.jpg"] == (53, 74)


def test_divergence_0_is_the_photo_twice(call, rng, tmp_path):
    path = photo(tmp_path / "a.png", rng)
    code, _ = call("stereo", path, "--out", tmp_path, "--divergence", 0, "--format", "png")
    pair = np.asarray(Image.open(tmp_path / "a_SBS.png"))
    assert code == 0
    np.testing.assert_array_equal(pair, np.hstack([np.asarray(Image.open(path))] * 2))


@pytest.mark.parametrize(
    "changes",
    [
        dict(max_depth=10.0),
        dict(kind="depth", output="exp"),
        dict(kind="metric", output="exp", focal_length=300.0),
    ],
)
def test_models_of_depth(changes, call, rng, tmp_path):
    path = photo(tmp_path / "a.png", rng)
    model = save_model(tmp_path / "model", tiny(**changes))
    command = ["stereo", path, "--out", tmp_path / "out", "--fov", 60]
    code, text = call(*command, model=model)
    assert code == 0, text
    assert list(contents(tmp_path / "out")) == ["a_SBS.jpg"]


def test_existing_files_stay_and_a_bad_photo_does_not_stop_the_others(call, rng, tmp_path):
    photo(tmp_path / "in" / "a.png", rng)
    photo(tmp_path / "in" / "b.png", rng)
    (tmp_path / "in" / "c.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    code, text = call("stereo", tmp_path / "in", "--out", out)
    assert code == 1 and "2 written" in text and "1 failed" in text and "c.png" in text
    before = contents(out)
    code, text = call("stereo", tmp_path / "in" / "a.png", "--out", out, "--divergence", 9)
    assert code == 0 and "0 written" in text and "1 already there" in text
    assert contents(out) == before
    code, text = call(
        "stereo", tmp_path / "in" / "a.png", "--out", out, "--divergence", 9, "--overwrite"
    )
    assert code == 0 and contents(out)["a_SBS.jpg"] != before["a_SBS.jpg"]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_results_are_not_photos_of_the_next_run(ending, call, rng, tmp_path):
    photo(tmp_path / "a.png", rng)
    for layout, left_out in (("sbs", 0), ("pair", 1), ("tb", 3)):
        options = ["--layout", layout, "--format", ending]
        code, text = call("stereo", tmp_path, "--out", tmp_path, *options)
        assert code == 0 and "1 written" in text
        assert ("left out" in text) == bool(left_out) and str(left_out) * bool(left_out) in text
    names = {f"a{end}.{ending}" for end in ("_SBS", "_L", "_R", "_TB")}
    assert set(contents(tmp_path)) == {"a.png", *names}


def test_a_file_as_folder_is_one_line(call, rng, tmp_path):
    path = photo(tmp_path / "a.png", rng)
    code, text = call("stereo", path, "--out", path)
    assert code == 1 and f"--out {path}: cannot be written to" in text


def test_a_folder_is_no_finished_result(call, rng, tmp_path):
    path = photo(tmp_path / "a.png", rng)
    (tmp_path / "a_SBS.jpg").mkdir()
    (tmp_path / "x.webp").mkdir()
    code, text = call("stereo", path, "--out", tmp_path)
    assert code == 1 and "0 written" in text and "1 failed" in text
    code, text = call("parallax", path, "--out", tmp_path / "x.webp", "--overwrite")
    assert code == 1 and "is a folder" in text


def test_a_failure_names_the_photo_once(call, tmp_path):
    (tmp_path / "c.png").write_bytes(b"not a picture")
    _, text = call("stereo", tmp_path, "--out", tmp_path / "out")
    assert text.count("c.png") == 1


def test_a_photo_is_never_replaced(call, rng, tmp_path):
    photo(tmp_path / "a.png", rng)
    photo(tmp_path / "a_SBS.png", rng)
    before = contents(tmp_path)
    command = ["stereo", tmp_path / "a.png", tmp_path / "a_SBS.png", "--out", tmp_path]
    code, text = call(*command, "--format", "png", "--overwrite")
    assert code == 1 and "would replace a photo" in text
    assert contents(tmp_path)["a_SBS.png"] == before["a_SBS.png"]


def test_parallax_writes_a_video(call, rng, tmp_path):
    path, out = photo(tmp_path / "a.png", rng), tmp_path / "x" / "a.webp"
    command = ["parallax", path, "--out", out, "--seconds", 0.3, "--fps", 10]
    code, text = call(*command, "--divergence", 20)
    assert code == 0 and "3 frames" in text
    with Image.open(out) as file:
        assert file.n_frames == 3
    code, text = call(*command)
    assert code == 1 and "--overwrite replaces it" in text
    assert call(*command, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stereo", "--divergence", "50"], "divergence=50.0"),
        (["stereo", "--convergence", "1.5"], "convergence=1.5"),
        (["parallax", "--divergence", "-1"], "divergence=-1.0"),
    ],
)
def test_wrong_options(arguments, message, call, rng, tmp_path):
    path = photo(tmp_path / "a.png", rng)
    code, text = call(*arguments, path, "--out", tmp_path / "x.webp")
    assert code == 1 and message in text and len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--out", "x.gif"], ".mp4 or .webp"), (["--out", "a.png"], ".mp4 or .webp")],
)
def test_wrong_videos(arguments, message, call, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = call("parallax", photo(tmp_path / "a.png", rng), *arguments)
    assert code == 1 and message in text


def test_wrong_seconds(call, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        call("parallax", "a.png", "--out", "x.webp", "--seconds", "0")
    assert "above 0" in capsys.readouterr().err
