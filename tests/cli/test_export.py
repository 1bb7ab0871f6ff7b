"""`dafast export`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from dafast.cli import main
from dafast.evaluation import builtin
from dafast.evaluation.samples import DataMissingError
from dafast.runtime import OnnxModel
from tests.cli.helpers import photo

pytest.importorskip("onnxruntime")


@pytest.fixture
def export(model_folder, tmp_path, capsys):
    """Runs `dafast export` of the small model; gives exit code and what was printed."""

    def call(*arguments, out="model.onnx"):
        command = ["export", "--model", model_folder, "--out", str(tmp_path / out)]
        code = main([*command, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.mark.slow
def test_int8_says_its_error(export, tmp_path, rng, monkeypatch):
    def samples():
        sample = type("Sample", (), {})()
        sample.name, sample.image = "chosen", np.asarray(rng.random((28, 42, 3)), np.float32)
        return [sample]

    monkeypatch.setattr(builtin, "builtin", samples)
    picture = photo(tmp_path / "in" / "a.png", rng)
    code, text = export(
        "--dtype", "int8", "--calibrate", picture, "--shape", "28x42", "--batch", "1"
    )
    assert code == 0, text
    assert "chosen: int8 differs by" in text and "verified: max error" in text
    map_ = OnnxModel(tmp_path / "model.onnx").predict(picture).values
    assert map_.shape == (37, 53) and np.isfinite(map_).all()

    def missing():
        raise DataMissingError("no package has them")

    monkeypatch.setattr(builtin, "builtin", missing)
    code, text = export(
        "--dtype", "int8", "--calibrate", picture.parent, "--shape", "28x42", "--no-verify",
        out="other.onnx",
    )  # fmt: skip
    assert code == 0, text
    assert "no builtin photos" in text and "no package has them" in text


@pytest.mark.exhaustive
@pytest.mark.parametrize("format", ["openvino", "transformers.js"])
def test_every_int8_file_says_its_error(format, export, tmp_path, rng, monkeypatch):
    if format == "openvino":
        pytest.importorskip("openvino", reason="needs the package openvino")
    sample = type("Sample", (), {})()
    sample.name, sample.image = "chosen", np.asarray(rng.random((28, 42, 3)), np.float32)
    monkeypatch.setattr(builtin, "builtin", lambda: [sample])
    picture = photo(tmp_path / "in" / "a.png", rng)
    more = ("--dtype", "int8", "--shape", "28x42") if format == "openvino" else ()
    code, text = export(
        "--format", format, "--calibrate", picture, "--no-verify", *more,
        out="model.xml" if format == "openvino" else "folder",
    )  # fmt: skip
    assert code == 0, text
    assert "chosen: int8 differs by" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "int8"), "--dtype int8 needs --calibrate"),
        (("--shape", "0x14"), "must be multiples of 14"),
        (("--format", "coreml"), "add --no-verify"),
        (("--format", "transformers.js", "--shape", "28x28"), "leave out --shape"),
        (("--calibrate", "missing.jpg"), "missing.jpg: does not exist"),
    ],
)
def test_refusals_name_the_option(export, tmp_path, arguments, message):
    code, text = export(*arguments)
    assert code == 1 and message in text, text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("--shape", "28"), ("--batch", "0")])
def test_refused_values(export, option, value):
    with pytest.raises(SystemExit) as error:
        export(option, value)
    assert error.value.code == 2
