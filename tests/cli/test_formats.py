"""`dafast run --formats`: files, metres, cameras, ranges, lists."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.camera import intrinsics_from_35mm
from dafast.cli.depth_formats import FORMATS
from dafast.formats.facts import read_facts
from dafast.models.segmentation import SegmentationConfig
from dafast.palettes import colorize
from tests.cli.helpers import contents, photo, save_model
from tests.models.test_predict import BY_FOCAL, DA3
from tests.models.test_predict import photo as jpeg
from tests.tiny import TINY, tiny

ALL = ",".join(name for name in FORMATS if name != "facts")
ENDINGS = {f.ending for name, f in FORMATS.items() if name != "facts"}


@pytest.fixture(scope="module")
def metric_folder(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("metric"), tiny(max_depth=10.0))


def facts_in(folder: Path, name: str) -> dict:
    return read_facts(folder / name)


def test_every_format_of_a_relative_model(run, tmp_path, rng, model_folder):
    source = photo(tmp_path / "in" / "a.png", rng)
    code, text = run(source, "--formats", ALL, "--fov", "70")
    assert code == 0, text
    assert "camera: 1 from --fov" in text and "camera: fx " in text
    out = tmp_path / "out"
    assert set(contents(out)) == {f"a{ending}" for ending in ENDINGS}
    model = dafast.DepthAnything.from_pretrained(model_folder, device="cpu", dtype="float32")
    values = model.infer(source)
    for name in ("a.npy", "a.npz"):
        loaded = np.load(out / name)
        loaded = loaded if name == "a.npy" else loaded["disparity"]
        np.testing.assert_allclose(loaded, values, rtol=1e-5)
    for ending in ENDINGS - {".npy", ".pfm"}:
        facts = facts_in(out, f"a{ending}")
        assert (facts["kind"], facts["unit"], facts["near_is_large"]) == ("disparity", "", True)
        assert facts["min"] == float(np.load(out / "a.npy").min())
        assert facts["photo_name"] == "a.png" and facts["model"] == "tiny"
        if ending in (".exr", ".npz", ".tiff", ".ply", ".glb", "_normals.png"):
            assert facts["camera_source"] == "fov"
            assert abs(facts["intrinsics"][0] - 26.5 / np.tan(np.radians(35))) < 1e-9
    gray = np.asarray(Image.open(out / "a_gray.png"))
    assert gray.dtype == np.uint8 and gray.ndim == 2
    assert (gray.argmax() == values.argmax()) or gray.max() == 255
    # Again: all of it stays; another format is added to it.
    before = contents(out)
    assert "1 already there" in run(source, "--formats", ALL, "--fov", "70")[1]
    assert contents(out) == before
    code, text = run(source, "--formats", "glb,ply", "--fov", "60")
    assert code == 1 and "different camera" in text
    code, text = run(source, "--formats", "glb", "--fov", "70", "--edge-threshold", "0.2")
    assert code == 1 and "different edge_threshold" in text
    assert "1 already there" in run(source)[1]  # the maps do not depend on the camera
    assert "intrinsics" not in facts_in(out, "a_depth.png")
    assert contents(out) == before
    code, text = run(source, "--depth-scale", "500")
    assert code == 1 and "does not predict metres: leave out --depth-scale" in text


def test_metres(run, tmp_path, rng, metric_folder):
    source = photo(tmp_path / "in" / "a.png", rng)
    code, text = run(source, "--formats", ALL, model=metric_folder)
    assert code == 0, text
    assert "camera: 1 assumed (28 mm" in text
    out = tmp_path / "out"
    model = dafast.DepthAnything.from_pretrained(metric_folder, device="cpu", dtype="float32")
    metres = model.infer_metric(source)
    np.testing.assert_allclose(np.load(out / "a.npy"), metres, rtol=1e-5)
    pixels = np.asarray(Image.open(out / "a_depth.png"))
    np.testing.assert_allclose(pixels / 1000, metres, rtol=0, atol=0.51e-3)
    for ending in ENDINGS - {".npy", ".pfm"}:
        facts = facts_in(out, f"a{ending}")
        assert (facts["kind"], facts["unit"], facts["near_is_large"]) == ("depth", "m", False)
    inverse = 1 / metres.astype(np.float64)
    inverse = (inverse - inverse.min()) / (inverse.max() - inverse.min())
    color = np.asarray(Image.open(out / "a_color.png"))
    assert (color == colorize(inverse)).all(axis=-1).mean() > 0.95
    assert "1 already there" in run(source, model=metric_folder)[1]


def test_what_does_not_fit_is_counted(run, tmp_path, rng, metric_folder):
    source = photo(tmp_path / "in" / "a.png", rng)
    code, text = run(source, "--formats", "png16,npy", "--depth-scale", "1e6", model=metric_folder)
    assert code == 0
    metres = np.load(tmp_path / "out" / "a.npy")
    lost = int((metres > 0.0655355).sum())
    assert lost and f"{lost} of {metres.size} pixels are not within 0.06553 m and became 0" in text
    assert facts_in(tmp_path / "out", "a_depth.png")["out_of_range"] == lost
    code, text = run(source, model=metric_folder)
    assert code == 1 and "different depth_scale" in text
    scale = 0.4 / metres.max()
    command = (source, "--depth-scale", scale, "--overwrite")
    text = run(*command, model=metric_folder)[1]
    assert f"nearer than half a step of {1 / scale:.4g} m and became 0; a larger --depth" in text


@pytest.mark.parametrize("sky", [False, True])
def test_a_calibrated_model_writes_metres(sky, run, tmp_path, rng):
    config = tiny(kind="depth", output="exp", sky_head=sky, calibration=(3.0, 0.5))
    folder = save_model(tmp_path / "m", config)
    source = photo(tmp_path / "in" / "a.png", rng)
    code, text = run(source, "--depth-scale", 500, "--npy", model=folder)
    assert code == 0, text
    metres = np.load(tmp_path / "out" / "a.npy")
    pixels = np.asarray(Image.open(tmp_path / "out" / "a_depth.png"))
    np.testing.assert_allclose(pixels / 500, metres, rtol=0, atol=1.01e-3)


@pytest.mark.slow
def test_arrays_without_a_picture_have_a_file_of_facts(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    out = tmp_path / "out"
    assert run(source, "--formats", "npy,pfm")[0] == 0
    assert set(contents(out)) == {"a.npy", "a.pfm", "a.json"}
    assert json.loads((out / "a.json").read_text())["dafast"]["kind"] == "disparity"
    before = contents(out)
    assert "1 already there" in run(source, "--formats", "npy,pfm")[1]
    code, text = run(source, "--formats", "npy,pfm", "--size", "42")
    assert code == 1 and "different size" in text
    assert contents(out) == before
    (out / "a.pfm").write_bytes(before["a.npy"])
    code, text = run(source, "--formats", "npy,pfm")
    assert code == 1 and "a.pfm exists and does not belong to a.json" in text
    assert run(source, "--formats", "npy,pfm", "--overwrite")[0] == 0
    assert contents(out) == before
    # With a picture next to them they need no file of facts.
    assert run(source, "--formats", "npy", "--npy", "--side-by-side", out=tmp_path / "two")[0] == 0
    assert set(contents(tmp_path / "two")) == {"a.npy", "a_side.png"}


def test_overwriting_replaces_all_formats_that_are_there(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    assert run(source, "--formats", ALL, "--size", "42")[0] == 0
    before = contents(tmp_path / "out")
    assert run(source, "--overwrite", "--formats", "exr")[0] == 0
    after = contents(tmp_path / "out")
    assert before.keys() == after.keys() and not before.items() & after.items()
    assert "1 already there" in run(source, "--formats", ALL)[1]


def test_stale_files_of_other_formats_are_named(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    out = tmp_path / "out"
    assert run(source, "--formats", "glb,exr,pfm", "--size", "42")[0] == 0
    code, text = run(source, "--formats", "tiff")
    assert code == 0
    for name in ("a.glb", "a.exr", "a.pfm"):
        assert f"warning: {out / name} is not of the same prediction as a.tiff" in text


def test_results_are_no_photos(run, tmp_path, rng):
    photo(tmp_path / "a.png", rng)
    formats = ("--formats", "png16,color,gray,normals,tiff,exr")
    assert run(tmp_path, *formats, out=tmp_path)[0] == 0
    before = contents(tmp_path)
    code, text = run(tmp_path, *formats, out=tmp_path)
    assert code == 0 and "1 already there, 5 results of earlier runs left out" in text
    assert contents(tmp_path) == before
    everything = [str(path) for path in sorted(tmp_path.iterdir()) if path.is_file()]
    code, text = run(*everything, *formats, out=tmp_path)
    assert code == 0 and "6 results of earlier runs left out" in text


def test_one_range_for_all(run, tmp_path, rng):
    for i, name in enumerate("abc"):
        photo(tmp_path / "in" / f"{name}.png", rng, (30 + i, 40))
    out = tmp_path / "out"
    formats = ("--formats", "png16,color,gray,npy")
    code, text = run(tmp_path / "in", *formats, "--common-range")
    assert code == 0, text
    maps = {name: np.load(out / f"{name}.npy") for name in "abc"}
    low, high = (
        float(f(m.min() if f is min else m.max() for m in maps.values())) for f in (min, max)
    )
    for name, values in maps.items():
        scaled = (values.astype(np.float64) - low) / (high - low)
        pixels = np.asarray(Image.open(out / f"{name}_depth.png"))
        np.testing.assert_allclose(pixels, scaled * 65535, atol=0.51)
        np.testing.assert_array_equal(
            np.asarray(Image.open(out / f"{name}_color.png")), colorize(scaled)
        )
        facts = facts_in(out, f"{name}_depth.png")
        assert facts["range"] == [low, high] == [facts["disparity_min"], facts["disparity_max"]]
        assert (facts["min"], facts["max"]) == (values.min(), values.max())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    before = contents(out)
    assert "3 already there" in run(tmp_path / "in", *formats, "--common-range")[1]
    assert contents(out) == before
    code, text = run(tmp_path / "in", *formats)  # each its own range
    assert code == 1 and "different range" in text
    assert run(tmp_path / "in", *formats, "--overwrite")[0] == 0
    assert np.asarray(Image.open(out / "a_depth.png")).max() == 65535


def test_a_range_of_metres_with_the_photo_and_without_it(run, tmp_path, rng, metric_folder):
    for name in "ab":
        photo(tmp_path / "in" / f"{name}.png", rng)
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    command = (tmp_path / "in", "--formats", "side,gray,npy", "--common-range")
    code, text = run(*command, model=metric_folder)
    assert code == 1 and "2 written" in text and "1 failed" in text
    maps = [np.load(tmp_path / "out" / f"{name}.npy").astype(np.float64) for name in "ab"]
    low, high = 1 / max(map(np.max, maps)), 1 / min(map(np.min, maps))
    for name, metres in zip("ab", maps, strict=True):
        gray = np.asarray(Image.open(tmp_path / "out" / f"{name}_gray.png"))
        np.testing.assert_allclose(gray, (1 / metres - low) / (high - low) * 255, atol=0.51)
    assert "2 already there" in run(*command, model=metric_folder)[1]
    # Millimetres do not depend on the range.
    source = tmp_path / "in" / "a.png"
    millimetres = (source, "--formats", "png16")
    assert "1 written" in run(*millimetres, "--common-range", model=metric_folder)[1]
    assert "1 already there" in run(*millimetres, model=metric_folder)[1]


@pytest.mark.parametrize("kind", ["mono", "negative"])
def test_a_range_of_inverses_is_found_again(kind, run, tmp_path, rng, model_folder):
    """Of depth without a unit, and of calibrated disparity of which some is negative."""
    source = photo(tmp_path / "in" / "a.png", rng)
    config = tiny(kind="depth", output="exp")
    if kind == "negative":
        model = dafast.DepthAnything.from_pretrained(model_folder, device="cpu", dtype="float32")
        values = model.infer(source).astype(float)
        scale = 1 / np.ptp(values)
        shift = -scale * np.quantile(values, 0.2)
        config = tiny(calibration=(float(scale), float(shift)))
    folder = save_model(tmp_path / "m", config)
    for formats in ("npy,pfm", "color,npy,exr"):
        command = (source, "--formats", formats, "--common-range")
        out = tmp_path / formats
        code, text = run(*command, out=out, model=folder)
        assert code == 0, text
        assert np.isnan(np.load(out / "a.npy")).any() == (kind == "negative")
        assert "1 already there" in run(*command, out=out, model=folder)[1]


@pytest.mark.parametrize("orientation", [1, 6])
def test_cameras(run, tmp_path, rng, orientation):
    folder = save_model(tmp_path / "model", BY_FOCAL)
    source = jpeg(tmp_path / "a.jpg", rng, (44, 30), focal=27, orientation=orientation)
    plain = jpeg(tmp_path / "b.jpg", rng)
    code, text = run(source, plain, "--formats", "npz", model=folder)
    assert code == 1 and "camera: 1 from EXIF data" in text
    assert f"FAILED {plain}: 'tiny' needs the camera's focal length" in text
    focal = 27 / np.hypot(36, 24) * np.hypot(30, 44)
    assert f"fx {focal:.1f} fy {focal:.1f} (exif)" in text
    with np.load(tmp_path / "out" / "a.npz") as file:
        model = dafast.DepthAnything.from_pretrained(folder, device="cpu", dtype="float32")
        np.testing.assert_allclose(file["depth"], model.infer_metric(source), rtol=1e-5)
        assert file["sky"].dtype == bool
    # Of this model all results depend on the camera.
    code, text = run(source, "--formats", "npz", "--fov", "40", model=folder)
    assert code == 1 and "different camera" in text


@pytest.mark.slow
def test_intrinsics_from_text_and_files(run, tmp_path, rng):
    source = photo(tmp_path / "a.png", rng)
    np.save(tmp_path / "k.npy", [[50.0, 0, 26], [0, 52, 18], [0, 0, 1]])
    (tmp_path / "k.txt").write_text("50 0 26\n0 52 18\n0 0 1\n")
    (tmp_path / "k.json").write_text('{"fx": 50, "fy": 52, "cx": 26, "cy": 18}')
    (tmp_path / "list.json").write_text("[50, 52, 26, 18]")
    (tmp_path / "k.yaml").write_text("# camera 7\ncx: 26.0\ncy: 18\nfx: 5e1\nfy: 52\n")
    for given in (
        "50,52,26,18",
        *(tmp_path / n for n in ("k.npy", "k.txt", "k.json", "list.json", "k.yaml")),
    ):
        out = tmp_path / "out"
        code, text = run(source, "--formats", "exr", "--intrinsics", given)
        assert code == 0, text
        assert facts_in(out, "a.exr")["intrinsics"] == [50, 52, 26, 18]
        assert "1 from --intrinsics" in text or "1 already there" in text
    (tmp_path / "t.txt").write_text("50 0 0\n0 52 0\n26 18 1\n")
    (tmp_path / "words.txt").write_text("camera: 50 52 26 18\n")
    (tmp_path / "part.yaml").write_text("fx: 50\nfy: 52\n")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "k.npz").write_bytes(b"PK\xff")
    for given, message in (
        (tmp_path / "t.txt", "the matrix is transposed"),
        (tmp_path / "words.txt", "the text has the word 'camera'; it must hold four numbers"),
        (tmp_path / "part.yaml", "neither intrinsics nor fx, fy, cx and cy ('cx' is missing)"),
        (tmp_path / "k.npz", "the file is neither text, nor JSON, nor NPY"),
        (tmp_path / "empty.npy", "empty.npy: No data left in file"),
        ("50,52", "intrinsics are (fx, fy, cx, cy)"),
        ("nowhere.txt", "neither a file, nor four numbers, nor exif"),
        ("-1,52,26,18", "above 0"),
    ):
        code, text = run(source, f"--intrinsics={given}")
        assert code == 1 and message in text and text.count("\n") == 1
    code, text = run(source, "--formats", "ply", "--intrinsics", "exif")
    assert code == 1 and "no FocalLengthIn35mmFilm in its EXIF data: give --fov" in text
    assert "fov is the horizontal angle" in run(source, "--fov", "190")[1]
    code, text = run(source, "--formats", "ply", "--intrinsics", "4.2,4.2,26,18")
    assert "is it in millimetres" in text
    code, text = run(source, "--formats", "ply", "--fov", "1.05", "--overwrite")
    assert "was it given in radians" in text


def test_relative_depth_is_written_as_disparity(run, tmp_path, rng):
    folder = save_model(tmp_path / "model", tiny(**DA3, kind="depth"))
    source = photo(tmp_path / "a.png", rng)
    code, text = run(source, "--formats", ALL, model=folder)
    assert code == 0, text
    model = dafast.DepthAnything.from_pretrained(folder, device="cpu", dtype="float32")
    result = model.predict(source)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a.npy"), 1 / result.values, rtol=1e-5)
    sky = result.sky.sum()
    data = (tmp_path / "out" / "a.ply").read_bytes()
    assert f"element vertex {result.values.size - sky}\n".encode() in data


def test_segmentation_models(run, tmp_path, rng):
    torch.manual_seed(0)
    names = ("sky", "ground", "rest")
    dafast.SegmentationModel(SegmentationConfig(TINY, names)).eval().save_pretrained(tmp_path / "m")
    model = dafast.SegmentationModel.from_pretrained(tmp_path / "m", device="cpu", dtype="float32")
    source = photo(tmp_path / "in" / "a.png", rng)
    deep = tmp_path / "in" / "deep.png"
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(deep)
    code, text = run(tmp_path / "in", "--npy", model=str(tmp_path / "m"))
    assert code == 0, text
    out = tmp_path / "out"
    endings = ("_classes.png", "_overlay.png", ".npy")
    assert set(contents(out)) == {f"{n}{e}" for n in ("a", "deep") for e in endings}
    expected = model.segment(source)
    with Image.open(out / "a_classes.png") as image:
        assert image.mode == "P" and json.loads(image.text["dafast"])["classes"] == list(names)
        np.testing.assert_array_equal(np.asarray(image), expected)
        colors = np.asarray(image.convert("RGB")).astype(int)
    np.testing.assert_array_equal(np.load(out / "a.npy"), expected)
    pixels = np.asarray(Image.open(source)).astype(int)
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "a_overlay.png")), (pixels + colors) // 2
    )
    assert "2 already there" in run(tmp_path / "in", "--npy", model=str(tmp_path / "m"))[1]
    code, text = run(source, "--formats", "exr", model=str(tmp_path / "m"))
    assert code == 1 and "no exr; --formats takes classes, overlay, npy" in text
    for option, value in (("--fov", 60), ("--palette", "gray"), ("--max-tokens", 64)):
        code, text = run(source, option, value, model=str(tmp_path / "m"))
        assert code == 1 and f"is a segmentation model: leave out {option}" in text
    code, text = run(source, "--formats", "classes")
    assert code == 1 and "this kind of model has no classes" in text


def test_lists_of_photos(run, tmp_path, rng, monkeypatch):
    paths = [photo(tmp_path / "in" / f"{name}.png", rng) for name in ("a", "b b", "ü", "d")]
    (tmp_path / "list.txt").write_text("\ufeff" + f"{paths[0]}\r\n\n{paths[1]}\n", encoding="utf-8")
    code, text = run(f"@{tmp_path / 'list.txt'}", paths[3])
    assert code == 0 and "3 written" in text

    def given(data: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    given("".join(f"{path}\0" for path in paths).encode())  # find -print0
    code, text = run("-")
    assert code == 0 and "1 written" in text and "3 already there" in text
    given(b"\n")
    code, text = run("-")
    assert code == 1 and "standard input: the list has no names" in text
    code, text = run("https://example.org/a.jpg")
    assert code == 1 and "https://example.org/a.jpg: a URL; download it, or pass it to" in text
    code, text = run("@missing.txt")
    assert code == 1 and "@missing.txt: the list cannot be read" in text
    photo(tmp_path / "@c.png", rng)
    monkeypatch.chdir(tmp_path)
    assert run("@c.png")[0] == 0  # a photo of this name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--formats", "png16,jpeg"), "jpeg; choose from png16, color"),
        (("--formats", ","), "no name; choose from"),
        (("--palette", "nope"), "no palette 'nope'; there are: Spectral_r"),
        (("--depth-scale", "0"), "0.0 is not a positive depth"),
        (("--fov", "60", "--intrinsics", "exif"), "not allowed with argument --fov"),
    ],
)
def test_options_that_are_none(run, tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_palettes_of_other_packages(run, tmp_path, rng, monkeypatch):
    import cmap
    import matplotlib

    values = np.arange(256) / 255
    expected = matplotlib.colormaps["cividis"](values, bytes=True)[:, :3]
    np.testing.assert_allclose(colorize(values, "cividis"), expected, atol=1)
    expected = (cmap.Colormap("crameri:batlow")(values)[:, :3] * 255).round()
    np.testing.assert_allclose(colorize(values, "crameri:batlow"), expected, atol=1)
    assert (colorize(values, "gray") == np.arange(256)[:, None]).all()
    assert run(photo(tmp_path / "a.png", rng), "--palette", "crameri:batlow")[0] == 0
    with pytest.raises(ValueError, match="turbo, gray, and the names of matplotlib and cmap"):
        colorize(values, "nope")
    for package in ("matplotlib", "cmap"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"names of matplotlib and cmap need these packages"):
        colorize(values, "crameri:oslo")


def kinds_of_photos(folder: Path, rng: np.random.Generator) -> None:
    """Ten photos: orientations, 16 bits, alpha, CMYK, an animation, 1x1, 20:1 and others."""
    folder.mkdir()
    pixels = rng.integers(0, 256, (30, 44, 4), dtype=np.uint8)
    for orientation in (3, 6, 7):
        jpeg(folder / f"turned{orientation}.jpg", rng, focal=26, orientation=orientation)
    Image.fromarray(rng.integers(0, 65536, (20, 31)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(pixels, "CMYK").save(folder / "cmyk.jpg")
    frames = [Image.fromarray(pixels[..., :3]), Image.fromarray(255 - pixels[..., :3])]
    frames[0].save(folder / "animation.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels[:1, :1, :3]).save(folder / "dot.png")
    Image.fromarray(np.tile(pixels[:6, :, :3], (1, 3, 1))[:, :120]).save(folder / "long.bmp")
    Image.fromarray(pixels[..., 0]).convert("P").save(folder / "palette.png")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_ten_photos_in_every_format(kind, run, tmp_path, rng, model_folder, metric_folder):
    model = metric_folder if kind == "metric" else model_folder
    kinds_of_photos(tmp_path / "in", rng)
    command = (tmp_path / "in", "--formats", ALL)
    code, text = run(*command, model=model)
    assert code == 0, text
    out = tmp_path / "out"
    assert len(contents(out)) == 10 * len(ENDINGS)
    focals = intrinsics_from_35mm(26, 30, 40).fx
    assert "camera: 7 assumed" in text and f"; 3 from EXIF data, fx {focals:.1f}\n" in text
    before = contents(out)
    assert "10 already there" in run(*command, model=model)[1]
    assert contents(out) == before


@pytest.mark.exhaustive
def test_50_megapixels_in_every_format(run, tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    image.resize((8660, 5774)).save(tmp_path / "large.jpg")
    code, text = run(tmp_path / "large.jpg", "--formats", ALL)
    assert code == 0, text
    assert set(contents(tmp_path / "out")) == {f"large{ending}" for ending in ENDINGS}
    assert "1 already there" in run(tmp_path / "large.jpg", "--formats", ALL)[1]
