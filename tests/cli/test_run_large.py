"""`dafast run` with --tile and --panorama."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dafast.formats.facts import read_facts
from tests.cli.helpers import contents, photo


def test_tiles_are_noted_and_kept_apart(run, rng, tmp_path):
    path, out = photo(tmp_path / "a.png", rng, (90, 140)), tmp_path / "out"
    assert run(path, "--tile", 64, "--npy")[0] == 0
    assert read_facts(out / "a_depth.png")["tile"] == 64
    tiled = np.load(out / "a.npy")
    code, text = run(path, "--tile", 64, "--npy")
    assert code == 0 and "1 already there" in text
    code, text = run(path, "--npy")
    assert code == 1 and "different tile" in text
    assert run(path, "--npy", "--overwrite")[0] == 0
    assert "tile" not in read_facts(out / "a_depth.png")
    assert np.load(out / "a.npy").shape == tiled.shape == (90, 140)
    assert not np.array_equal(np.load(out / "a.npy"), tiled)


def test_a_panorama_goes_through_the_formats(run, rng, tmp_path):
    path, out = photo(tmp_path / "a.png", rng, (32, 64)), tmp_path / "out"
    formats = "png16,color,gray,side,npz,npy,tiff,pfm,ply,glb,normals"
    code, text = run(path, "--panorama", "--formats", formats)
    assert code == 0, text
    assert len(contents(out)) == 11
    for name in ("a_depth.png", "a.npz", "a.tiff", "a.ply", "a.glb"):
        assert read_facts(out / name)["projection"] == "equirectangular", name
    assert Image.open(out / "a_normals.png").size == (64, 32)


def test_guided_maps_are_noted(run, rng, tmp_path):
    path, out = photo(tmp_path / "a.png", rng, (60, 80)), tmp_path / "out"
    assert run(path, "--guided", "--tile", 64)[0] == 0
    assert read_facts(out / "a_depth.png")["guided"] is True
    code, text = run(path, "--tile", 64)
    assert code == 1 and "different guided" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--panorama", "--fov", "60"], "leave out --fov"),
        (["--panorama", "--tile", "auto"], "leave out --tile"),
        (["--panorama"], "twice as wide as high"),
        (["--tile", "5"], "4 x 4 patches"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, run, rng, tmp_path):
    code, text = run(photo(tmp_path / "a.png", rng), *arguments)
    assert code == 1 and message in text


def test_wrong_tiles_are_wrong_usage(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("a.png", "--tile", "large")
    assert "not a whole number" in capsys.readouterr().err
