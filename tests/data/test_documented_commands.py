"""The commands of docs/data.md run as written, on small data instead of the published."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from dafast.cli import main
from tests.data import test_picture_readers as pictures
from tests.data import test_readers as labeled
from tests.data.test_remote import Server
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip() for line in PAGE.splitlines() if line.startswith("dafast ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_seed: int):
    """The data, the teacher and the SegFormer, where the page has them."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("documented")
    rng = np.random.default_rng(run_seed)
    labeled.tartanair(root / "published" / "tartanair", rng)
    labeled.hrwsi(root / "published" / "HR-WSI", rng)
    pictures.sa1b(root / "published" / "sa1b", rng)
    (root / "photos").mkdir()
    for i in range(3):
        image = rng.integers(0, 256, (50, 60, 3), np.uint8)
        Image.fromarray(image).save(root / "photos" / f"{i}.jpg")
        np.save(root / f"{i}.npy", rng.uniform(1, 9, (50, 60)))
    rows = [f"photos/{i}.jpg,{i}.npy\n" for i in range(3)]
    (root / "list.csv").write_text("image,depth\n" + "".join(rows))
    tiny.trained_model().save_pretrained(root / "runs" / "teacher" / "export")
    tiny.write_shards(root / "data" / "megadepth", 2, 3, run_seed)
    tiny.write_shards(root / "served" / "photos", 10, 1, run_seed, labeled=False)
    for shard in (root / "served" / "photos").glob("*.tar"):
        shard.rename(shard.with_name(f"shard-0{shard.name}"))
    labels = {i: f"class {i}" for i in range(150)} | {2: "sky"}
    config = transformers.SegformerConfig(
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
        hidden_sizes=[8, 8, 8, 8],
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(root / "segformer")
    server = Server(root / "served")
    yield root, server.url
    server.close()
    fsspec.filesystem("memory").rm("memory://documented", recursive=True)


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 13
    for part in ("data check", "data pack", "data sky", "label", "http://", "s3://"):
        assert any(part in command for command in COMMANDS), part


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, folder, monkeypatch, tmp_path: Path, capsys, seed: int) -> None:
    root, server = folder
    monkeypatch.chdir(root)
    monkeypatch.setenv("DAFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("dafast.data.sky.MODEL", "segformer")
    monkeypatch.setattr("dafast.data.sky.SIDE", 64)
    for written, here in (
        *(("/data/", "published/"), ("http://server", server)),
        *(("s3://bucket", "memory://documented"), ("--model runs", "--model ./runs")),
    ):
        command = command.replace(written, here)
    arguments = shlex.split(command)[1:]
    if "label" in arguments and "--in" in arguments:  # what the command before it has written
        source = arguments[arguments.index("--in") + 1]
        if not Path(source).exists():
            name = "photos" if "://" in source else "sa1b"
            data = ["photos"] if name == "photos" else ["sa1b", "published/sa1b"]
            assert main(["data", "pack", *data, "--out", source]) == 0
            capsys.readouterr()
    assert main(arguments) == 0
    text = capsys.readouterr().out
    if "check" in arguments:
        assert " 0 damaged" in text
    if "sky" in arguments:
        assert json.loads(Path("data/megadepth/sky.json").read_text())["model"] == "segformer"
