"""The shell blocks of the documentation run, line by line, with small inputs and `nano`.

`pytest -m exhaustive tests/test_shell_blocks.py` takes some minutes. `tests/test_doc_blocks.py`
only parses the same lines.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dafast
from dafast.cli import main
from dafast.views import save_video
from tests.forks import Fork
from tests.test_doc_blocks import SHELL, small

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    *("index", "install", "cookbook", "output", "scenes", "metric", "video", "training", "data"),
    *("evaluation", "segmentation", "export", "scale", "nano", "ablation", "gpu"),
)
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))

# Lines that do not run here, each with its reason. The first pattern that is found counts.
LEFT_OUT = {
    r"^(pip install|python3 -m venv|\. \.venv|make |python -m pytest|apt-get)": "installs",
    r"nproc-per-node 8|--nnodes|srun|scontrol|^set -|^head=|^others=|^sleep|^export ": "a cluster",
    r"--cluster ray": "a cluster; tests/cluster runs it",
    r"https?://|s3://": "another machine",
    r"sa1b|tartanair|hrwsi|megadepth|nyu|kitti|ade20k|cityscapes|worlds|packages": "published data",
    r"metric-(indoor|outdoor)|runs/metric-": "published weights or a long training",
    r"vits-aoti|aoti|coreml|trtexec": "a compiler, a Mac, TensorRT",
    r"dafast video 0 ": "a webcam",
    r"^(python|cp) .*(bench/|experiments/)|ablation": "measurements of hours",
    r"--config \S*(nano-student|student-vits|metric-nano)": "needs a teacher or a long training",
    r"segmentation-list": "a list with class maps",
}

FEW = "--steps 2 --optim.warmup-steps 0 --batch-size 2"

# What is smaller here, in each line.
SMALLER = (
    (r"(?<=--model )(v2-vits|vits)\b(?!\.)", "nano"),
    (r"(?<=--model )vda-vits\b", "clips-model"),
    (r"(?<=--scenes )\d+", "6"),
    (r"(?<=--clip )\d+", "6"),
    (r"(?<=--size )(224 168|320 240|518|720)\b", "112 84"),
    (r"(data pack .*--size) 112 84", r"\1 112"),
    (r"(?<=--seconds )\d+", "0.5"),
    (r"(?<=--nproc-per-node )\d+", "2"),
    (r"--frames 8", "--frames 2"),
    (r"--config video-nano", "--config video-nano --video.frames 4 --data.shapes 84 84"),
    (r"(--config[ =])(configs/)?finetune(\.toml)? ", r"\1finetune-nano "),
    (r"(dafast train .*|python train\.py (?!--help).*)", rf"\1 {FEW}"),
    (r"runs/finetune/", "runs/finetune-nano/"),
)


def lines(page: str) -> list[str]:
    """The commands of a page, without comments, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8")
    joined = "\n".join(SHELL.findall(text)).replace("\\\n", " ")
    found = (re.sub(r"\s+#\s.*|^#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in found if line]


def why_left_out(line: str) -> str:
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, line)), "")


def test_most_lines_run_and_no_reason_is_idle():
    """Of the lines of all pages; a page without commands would be a wrong name."""
    every = [line for page in PAGES for line in lines(page)]
    assert len([line for line in every if not why_left_out(line)]) > 55
    assert [p for p in LEFT_OUT if not any(re.search(p, line) for line in every)] == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the lines name."""
    for name in ("examples", "configs", "train.py", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    photo = Image.open(ROOT / "examples/photos/room.jpg").resize((112, 84))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    for name in ("photo", "photos/c", "photos/d"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo.save(path, exif=exif)
    photo.resize((128, 64)).save(tmp_path / "panorama.jpg")
    (tmp_path / "photos.txt").write_text("photos/c.jpg\nphotos/d.jpg\n")
    camera = {"fx": 100.0, "fy": 100.0, "cx": 56.0, "cy": 42.0}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    ramp = np.linspace(4000, 1000, 84 * 112).reshape(84, 112).astype(np.uint16)
    (tmp_path / "data").mkdir()
    for where in (tmp_path, tmp_path / "data"):
        Image.fromarray(ramp).save(where / "depth.png")
        photo.save(where / "list.jpg")
        rows = "list.jpg,depth.png,mm\n" * 12
        for name in ("my-pictures", "list", "other", "other-scenes"):
            (where / f"{name}.csv").write_text(f"image,depth,unit\n{rows}")
    frames = [np.roll(np.asarray(photo), 2 * i, axis=1) for i in range(12)]
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frames/{i:03}.png")
    monkeypatch.chdir(tmp_path)
    for name in ("film.mp4", "film.webp"):
        save_video(name, frames, fps=24)
    shutil.copy("film.mp4", "film.mkv")
    video = dataclasses.replace(small("vda-vits"), name="clips")
    dafast.DepthAnything(video).eval().save_pretrained("clips-model")
    dafast.DepthAnything.from_pretrained("nano").save_pretrained("runs/teacher/export")
    dafast_command(["synth", "--scenes", "6", "--size", "112", "84", "--out", "pictures"])
    return tmp_path


def dafast_command(words: list[str]) -> tuple[int, str]:
    process = Fork(lambda: main(words), {"CUDA_VISIBLE_DEVICES": ""})
    code = process.wait(600)
    if code is None:
        process.end()
    return -1 if code is None else code, process.stdout + process.stderr


def shell(line: str, bin_folder: Path) -> tuple[int, str]:
    """Runs a line in bash, with this Python as `python` and `dafast`."""
    bin_folder.mkdir(exist_ok=True)
    for name, words in (
        ("python", ""),
        ("dafast", "-m dafast"),
        ("torchrun", "-m torch.distributed.run"),
    ):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        script.chmod(0o755)
    path = os.pathsep.join([str(bin_folder), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", PAGES)
def test_the_lines_of_a_page_run(page: str, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    failed = []
    for line in lines(page):
        if why_left_out(line):
            continue
        for pattern, smaller in SMALLER:
            line = re.sub(pattern, smaller, line)
        shutil.rmtree("depth", ignore_errors=True)  # other options want other files there
        for name in ("depth.mp4", "depth.mkv", "depth.npz", "side.mp4"):
            Path(name).unlink(missing_ok=True)
        words = shlex.split(line)
        if words[0] == "dafast" and not re.search(r"[|*<>&;]", line):
            code, text = dafast_command(words[1:])
        else:
            code, text = shell(line, tmp_path_factory.getbasetemp() / "bin")
        print(f"{page}: {line}: {code}")
        if code:
            failed.append(f"{line}\n{text[-1500:]}")
    assert not failed, "\n\n".join(failed)
