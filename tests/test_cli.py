"""The command line, on a small network with random weights."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import dafast
from dafast.cli import main, photos
from dafast.cli.doctor import collect
from dafast.config import ModelConfig
from dafast.images import load_image
from dafast.palettes import PALETTES, colorize
from tests.instruction_sets import instruction_set, needs_extension
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parent.parent


def _save_model(folder: Path, config: ModelConfig) -> str:
    torch.manual_seed(0)
    model = dafast.DepthAnything(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Random weights at their initialisation give a map that is nearly constant, or zero.
            if name.endswith("output_conv2.2.bias"):
                parameter.fill_(1.0)
            elif parameter.ndim > 1:
                parameter.mul_(1.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    return _save_model(tmp_path_factory.mktemp("model"), TINY)


def photo(path: Path, rng: np.random.Generator, size=(37, 53)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(model_folder, tmp_path, capsys):
    """Runs `dafast run` into tmp_path/out; gives exit code and what was printed."""

    def call(*arguments, out=None, model=model_folder) -> tuple[int, str]:
        out = tmp_path / "out" if out is None else out
        command = ["run", *map(str, arguments), "--out", str(out), "--model", model]
        code = main([*command, "--dtype", "float32", "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_run_writes_what_the_model_predicts(run, tmp_path, rng, model_folder):
    source = photo(tmp_path / "in" / "a.png", rng)
    code, text = run(source, "--npy", "--side-by-side")
    assert code == 0, text
    out = tmp_path / "out"
    assert sorted(contents(out)) == ["a.npy", "a_color.png", "a_depth.png", "a_side.png"]

    model = dafast.DepthAnything.from_pretrained(model_folder, device="cpu", dtype="float32")
    disparity = model.infer(load_image(source))
    assert np.ptp(disparity) > 0
    saved = np.load(out / "a.npy")
    assert saved.dtype == np.float32
    np.testing.assert_allclose(saved, disparity, rtol=1e-5, atol=1e-6)

    with Image.open(out / "a_depth.png") as image:
        assert image.mode.startswith("I;16")
        depth = np.asarray(image).astype(np.int64)
        extent = json.loads(image.text["dafast"])
    assert (depth.min(), depth.max()) == (0, 65535)
    low, high = saved.min(), saved.max()
    np.testing.assert_allclose(depth, (saved - low) / (high - low) * 65535, atol=0.6)
    # and back again, from the range in the file
    span = extent["disparity_max"] - extent["disparity_min"]
    restored = depth / 65535 * span + extent["disparity_min"]
    np.testing.assert_allclose(restored, saved, atol=span / 65535)

    expected = matplotlib.colormaps["Spectral_r"](((saved - low) / (high - low)), bytes=True)
    color = np.asarray(Image.open(out / "a_color.png"))
    assert color.shape == (37, 53, 3)
    # float32 here, float64 there: a value on the border of two colours may fall to either side
    assert (color == expected[..., :3]).all(axis=-1).mean() > 0.99
    side = np.asarray(Image.open(out / "a_side.png"))
    assert (side[:, :53] == load_image(source)).all()
    assert (side[:, 53:] == color).all()


def test_palettes_are_matplotlibs(rng):
    values = np.concatenate([rng.random(2000), np.arange(257) / 256, [-0.5, 1.5]])
    for name in PALETTES:
        expected = matplotlib.colormaps[name](np.clip(values, 0, 1), bytes=True)[:, :3]
        np.testing.assert_array_equal(colorize(values, name), expected, err_msg=name)
    with pytest.raises(ValueError, match="Spectral_r"):
        colorize(values, "nope")


def test_palette_option(run, tmp_path, rng):
    source = photo(tmp_path / "a.png", rng)
    for name in ("inferno", "viridis"):
        assert run(source, "--palette", name, out=tmp_path / name)[0] == 0
        with Image.open(tmp_path / name / "a_depth.png") as depth:
            expected = colorize(np.asarray(depth) / 65535, name)
        color = np.asarray(Image.open(tmp_path / name / "a_color.png"))
        assert (color == expected).all(axis=-1).mean() > 0.99


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
    result = subprocess.run(
        [sys.executable, "-m", "dafast", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert result.returncode == 0, result.stderr
    assert "2 written" in result.stdout


def test_an_array_of_an_earlier_run_is_noticed(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    assert run(source, "--npy", "--size", "42")[0] == 0
    assert run(source, "--overwrite")[0] == 0  # replaces the pictures, and leaves the array
    code, text = run(source, "--npy")
    assert code == 1
    assert "a.npy is there and not that of a_depth.png" in text
    assert run(source, "--npy", "--overwrite")[0] == 0
    code, text = run(source, "--npy")
    assert code == 0
    assert "1 already there" in text


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
        Path(p)
        for p in (
            *("/x/a.jpg", "/x/a.png", "/x/A.JPG", "/y/a.jpg", "/x/x/a.jpg", "/y/x/a.jpg"),
            *("/z/a_jpg.png", "/x/x_a.png", "/x/b.jpg", "/x/é.jpg", "/y/e\u0301.jpg"),
        )
    ]
    names = dict(zip(paths, files.result_names(paths), strict=True))
    assert len({files._key(n) for n in names.values()}) == len(paths)
    assert names[Path("/x/b.jpg")] == "b"
    for _ in range(5):
        order = [paths[i] for i in rng.permutation(len(paths))]
        assert dict(zip(order, files.result_names(order), strict=True)) == names


def test_a_photo_given_twice_is_done_once(run, tmp_path, rng):
    source = photo(tmp_path / "in" / "a.png", rng)
    (tmp_path / "link.png").symlink_to(source)
    code, text = run(source, tmp_path / "in", str(tmp_path / "in" / "*.png"), tmp_path / "link.png")
    assert code == 0
    assert "1 written" in text
    assert set(contents(tmp_path / "out")) == {"a_depth.png", "a_color.png"}


def test_folders_and_patterns(tmp_path, rng):
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.png", ".hidden.png", ".git/x.png"):
        photo(tmp_path / name, rng, (8, 8))
    (tmp_path / "note.txt").touch()

    def found(*inputs, **options):
        photos, problems = files.find_photos([*map(str, inputs)], tmp_path / "out", **options)
        assert not problems
        return [p.relative_to(tmp_path).as_posix() for p in photos]

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
    registered = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    code, text = run(folder)
    assert code == 1
    assert registered
    for name, reason in (("a.HEIC", "HEIC"), ("b.heif", "HEIC"), ("c.jpe", "no"), ("d.avif", "no")):
        assert f"{name}: cannot be read as an image ({'a ' * (reason == 'HEIC')}{reason} " in text


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


def test_results_beside_the_photos(run, tmp_path, rng):
    photo(tmp_path / "a.png", rng)
    for _ in range(2):
        code, text = run(tmp_path, "--side-by-side", out=tmp_path)
        assert code == 0, text
    pictures = {p.name for p in tmp_path.iterdir()}
    assert pictures == {"a.png", "a_depth.png", "a_color.png", "a_side.png"}


def test_photos_are_never_overwritten(run, tmp_path, rng):
    source = photo(tmp_path / "a.png", rng)
    named_alike = photo(tmp_path / "a_color.png", rng)
    before = named_alike.read_bytes()
    code, text = run(source, named_alike, "--overwrite", out=tmp_path)
    assert code == 1
    assert "itself one of the photos" in text
    assert named_alike.read_bytes() == before


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, write)
    assert contents(tmp_path) == {"a.npy": b"old"}
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"a.npy": b"new"}
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process")
def test_interrupt_leaves_whole_files(tmp_path, rng, model_folder):
    for i in range(60):
        photo(tmp_path / "in" / f"{i:02}.png", rng, (300, 400))
    out = tmp_path / "out"
    command = ["run", str(tmp_path / "in"), "--out", str(out), "--model", model_folder, "--npy"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dafast", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A test run in the background may have been told to ignore Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.npy")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, text + errors
    assert "Traceback" not in errors
    assert "interrupted with" in text
    files_there = contents(out)
    assert 0 < len(files_there) < 3 * 60
    assert not [name for name in files_there if name.endswith(".part")]
    for name in files_there:
        if name.endswith(".npy"):
            assert np.load(out / name).shape == (300, 400)
        else:
            with Image.open(out / name) as image:
                image.load()


def test_grayscale_alpha_and_16_bit(run, tmp_path, rng):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)).save(folder / "gray.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)).save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "deep.png")
    code, text = run(folder, "--side-by-side")
    assert code == 0, text
    for name in ("gray", "rgba", "deep"):
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}_side.png")).shape == (20, 60, 3)


def test_a_model_that_is_not_there(run, tmp_path, rng):
    code, text = run(photo(tmp_path / "a.png", rng), model=str(tmp_path / "no-model"))
    assert code == 1
    assert "no-model" in text
    assert "Traceback" not in text


def test_metric_models_are_refused(run, tmp_path, rng):
    folder = _save_model(tmp_path / "metric", dataclasses.replace(TINY, max_depth=20.0))
    code, text = run(photo(tmp_path / "a.png", rng), model=folder)
    assert code == 1
    assert "infer_metric" in text


def test_size_under_a_patch_ends_it_before_any_photo(run, tmp_path, rng):
    code, text = run(photo(tmp_path / "a.png", rng), "--size", "5")
    assert code == 1
    assert "smaller than a patch" in text


def test_no_warning_of_a_photo_that_nobody_gave(run, tmp_path, caplog):
    (tmp_path / "a.png").touch()
    assert run(tmp_path / "a.png", "--size", "1400")[0] == 1
    assert "tokens" not in caplog.text


def test_out_that_is_a_file(run, tmp_path, rng):
    (tmp_path / "out").touch()
    code, text = run(photo(tmp_path / "a.png", rng))
    assert code == 1
    assert "--out" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["run", "a.jpg"], "--out"),
        (["run", "a.jpg", "--out", "x", "--palette", "nope"], "inferno"),
        (["run", "a.jpg", "--out", "x", "--size", "0"], "at least 1"),
        (["run", "a.jpg", "--out", "x", "--size", "big"], "whole number"),
        (["synth", "--out", "x"], "--scenes"),
    ],
)
def test_mistakes_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"dafast {dafast.__version__}\n"


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(json.dumps(collect()))
    assert report["packages"]["torch"] == torch.__version__
    for op, backends in report["ops"].items():
        assert backends[-1] == {"backend": "reference", "on": True}, op
    weights = ROOT / "dafast" / "weights" / "nano" / "model.safetensors"
    assert report["nano"]["present"] == weights.is_file()

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in report["missing"]:
        assert part["part"] in text
    assert str(torch.__version__) in text


@needs_extension
def test_doctor_says_which_instructions_the_kernels_use(capsys):
    with instruction_set("portable"):
        assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["extension"]["cpu_instructions"] == "portable"
    # The one that is loaded is the one that was built, and has every op.
    assert "parts of the C++ extension" not in [part["part"] for part in report["missing"]]


def test_doctor_says_what_a_missing_extension_costs(capsys, monkeypatch):
    from dafast.ops import _extension

    monkeypatch.setattr(_extension, "_load", lambda: (None, "taken away by the test"))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "taken away by the test" in text
    assert "cpp (off)" in text
    assert "resize_bicubic" in text[text.index("taken away") :]


def test_synth_writes_shards(tmp_path, capsys):
    command = ["synth", "--scenes", "2", "--out", str(tmp_path), "--seed", "3", "--workers", "1"]
    assert main(command) == 0
    assert list(tmp_path.glob("*.tar"))


def test_eval_prints_and_writes(tmp_path, capsys, monkeypatch, model_folder, rng):
    from dafast.evaluation import benchmarks

    depth = rng.uniform(1, 5, (30, 40)).astype(np.float32)
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sample = benchmarks.EvaluationSample("one", image, depth, 10.0)
    monkeypatch.setitem(benchmarks.DATA, "mine", lambda: [sample])
    path = tmp_path / "new" / "scores.json"
    command = ["eval", "--model", model_folder, "--data", "mine", "--json", str(path), "--md"]
    assert main(command) == 0
    results = json.loads(path.read_text())
    assert {r["predictor"] for r in results} == {"tiny", "constant", "plane"}
    assert {r["protocol"] for r in results} == {"paper"} and results[0]["count"] == 1
    table = capsys.readouterr().out.strip().splitlines()
    assert len(table) == 2 + len(results)
    assert len({line.count("|") for line in table}) == 1
    for result in results:
        row = next(line for line in table if f"| {result['predictor']} |" in line)
        assert f"{result['abs_rel']:.4f}" in row

    assert main(["eval", "--model", model_folder, "--data", "nope"]) == 1
    assert "mine" in capsys.readouterr().err
    assert main(["eval", "--model", model_folder, "--data", "mine", f"kitti={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "no split file; expected:" in error and "eigen_test_files.txt" in error
