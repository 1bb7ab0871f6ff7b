"""`dafast export`, then `dafast run` with the file in a process that cannot import PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafast import DepthAnything
from dafast.cli import main
from dafast.formats.facts import read_facts
from tests.export.heads import build
from tests.tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]
FORMATS = "png16,color,exr,npz,npy,tiff,pfm,ply,glb,normals,gray,side"


@pytest.mark.slow
def test_the_same_files_without_pytorch(tmp_path, capsys, seed):
    torch.manual_seed(3)
    build("v1").save_pretrained(tmp_path / "model")
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((61, 40)).save(tmp_path / "photo.png")
    file = tmp_path / "model.onnx"
    assert main(["export", "--model", str(tmp_path / "model"), "--out", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "verified: max error" in printed
    assert printed.count("max error") == 6
    run = ["run", str(tmp_path / "photo.png"), "--formats", FORMATS]
    true = [*run, "--dtype", "float32", "--model", str(tmp_path / "model")]
    assert main([*true, "--out", str(tmp_path / "true")]) == 0
    commands = [
        " ".join([*run, "--model", str(file), "--out", str(tmp_path / "out")]),
        " ".join([*run, "--model", "nano", "--out", str(tmp_path / "none")]),
        " ".join([*run, "--model", str(file), "--tile", "auto", "--out", str(tmp_path / "none")]),
        "eval",
        "doctor",
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("without_torch.py")), *commands],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "dafast.DepthAnything needs PyTorch, which is not installed" in done.stdout
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("exit")]
    assert codes == ["0", "1", "1", "1", "0"]
    assert "PyTorch: torch is not installed" in done.stdout
    assert done.stderr.count("needs PyTorch, which is not installed; without it") == 2
    assert "leave out --tile" in done.stderr
    names = sorted(path.name for path in (tmp_path / "true").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    out, expected = (np.load(tmp_path / name / "photo.npy") for name in ("out", "true"))
    bound = TOLERANCES[torch.float32].model * np.abs(expected).max()
    assert np.abs(out - expected).max() <= bound
    facts, wanted = (read_facts(tmp_path / name / "photo_depth.png") for name in ("out", "true"))
    same = facts.keys() - {"min", "max", "disparity_min", "disparity_max", "model"}
    assert {key: facts[key] for key in same} == {key: wanted[key] for key in same}
    # The notes are those of the model itself, so a run with PyTorch keeps the files.
    assert main([*true, "--out", str(tmp_path / "out")]) == 0
    assert "1 already there" in capsys.readouterr().out
    assert isinstance(DepthAnything.from_pretrained(tmp_path / "model"), DepthAnything)
