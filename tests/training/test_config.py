from __future__ import annotations

from pathlib import Path

import pytest

from dafast.training.config import ConfigError, TrainConfig, load_toml, parse_args
from dafast.training.schedules import lr_factor

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert parse_args(["--config", str(path)]).model.preset in ("nano", "vits", "vitb", "vitl")


def test_command_line_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'batch_size = 8\nout = "x"\n[model]\npreset = "nano"\n'
        "[optim]\nencoder_lr = 1e-3\nbetas = [0.8, 0.9]\n"
        "[data]\nshapes = [[168, 168], [168, 224]]\n",
    )
    config = parse_args(["--config", path, "--optim.encoder-lr", "2e-3", "--data.workers", "0"])
    assert (config.optim.encoder_lr, config.data.workers) == (2e-3, 0)
    assert (config.batch_size, config.optim.betas) == (8, (0.8, 0.9))
    assert config.data.shapes == ((168, 168), (168, 224))
    assert config.optim.decoder_lr == TrainConfig().optim.decoder_lr
    shapes = parse_args([f"--config={path}", "--data.shapes", "14", "28", "42", "56"]).data.shapes
    assert shapes == ((14, 28), (42, 56))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size = 3", "unknown key bach_size"),
        ("[optim]\nlr = 3", r"unknown key optim\.lr"),
        ("[data]\nshapes = [[168, 168, 3]]", r"data\.shapes\[0\]"),
        ('steps = "many"', "steps must be int"),
        ("steps = true", "steps must be int"),
        ("steps = 1.5", "steps must be int"),
        ('precision = "float8"', "precision must be one of"),
        ("model = 3", "model must be a table"),
        ("steps = ", "not valid TOML"),
        ('[model]\npreset = "vitz"', r"model\.preset.*vitz"),
        ("[data]\nshapes = [[100, 168]]", r"data\.shapes.*100"),
        ("epochs = 0", "steps or epochs"),
        ('[model]\npreset = "v2-metric-vkitti-vits"', "metric"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_args(["--config", write(tmp_path, text)])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_toml(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_warms_up_and_ends_at_zero(schedule: str) -> None:
    factors = [lr_factor(step, 100, 10, schedule) for step in range(101)]
    assert all(0 < f <= 1 for f in factors[:100])
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert factors.index(max(factors)) == 10
    assert factors[10] == 1.0
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
