from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dafast.config import PRESETS
from dafast.data.transforms import STRONG
from dafast.training.command import parse_args
from dafast.training.config import ConfigError, TrainConfig, UnlabeledSection
from dafast.training.config_files import load_toml
from dafast.training.schedules import lr_factor

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return str(path)


CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert parse_args(["--config", str(path)]).model.preset in PRESETS


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
        ("extends = 3", "extends must be the path"),
        ('extends = "config.toml"', "extends itself"),
        ('extends = "nowhere.toml"', r"cannot read .*nowhere\.toml"),
        ('[unlabeled]\nalign = "start"', r"unlabeled\.align = start .* model\.encoder_init"),
        ('[unlabeled]\nalign_view = "x"', r"unlabeled\.align_view must be one of"),
        ('[model]\npreset = "v2-metric-vkitti-vits"', "metric"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_args(["--config", write(tmp_path, text)])


@pytest.mark.parametrize(
    "option",
    [
        *("--optim.betas 2 3", "--threads -1", "--seed -1", f"--seed {2**64}", "--max-minutes -1"),
        *("--checkpoint-every -1", "--eval-every -1", "--max-bad-steps -1", "--steps -1"),
        *("--augment.blur-sigma -1 -2", "--augment.blur-sigma 2 1", "--augment.noise-sigma -1"),
        *("--augment.flip 2", "--augment.jitter -1", "--augment.brightness -1", "--augment.hue 1"),
        *("--data.eval-samples -3", "--data.max-bad-fraction 7", "--data.eval-max-depth 0"),
        *("--data.workers -1", "--optim.encoder-lr -1", "--optim.decoder-lr nan"),
        *("--optim.weight-decay -1", "--optim.grad-clip -1", "--optim.warmup-steps -1"),
        *("--optim.warmup-steps 5 --steps 5", "--augment.gamma -1", "--unlabeled.ratio 0"),
        *("--unlabeled.cutmix 2", "--unlabeled.cutmix-area 0 1", "--unlabeled.cutmix-aspect 0"),
        *("--unlabeled.align-margin 3", "--unlabeled.augment.flip 2"),
        *("--accumulate 0", "--accumulate 3", "--gradient-matching -1", "--optim.layer-decay 0"),
        *("--optim.layer-decay 1.1", "--compile --parallel fsdp", "--optim.muon --parallel fsdp"),
        *("--model.freeze-encoder --unlabeled.align dinov2", "--data.hold-out 1"),
        *("--data.hold-out 0.1", "--data.hold-out 0.1 --data.path a.csv --data.eval-path b"),
    ],
)
def test_values_out_of_range_are_errors_before_anything_is_loaded(option: str) -> None:
    key = option.split()[0].removeprefix("--").replace("-", "_")
    with pytest.raises(ConfigError, match=f"^{key} "):
        parse_args(option.split())


def test_a_file_may_start_from_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("batch_size = 8\nsteps = 3\n[unlabeled]\nratio = 5\n")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "config.toml"
    path.write_text('extends = "../base.toml"\nsteps = 7\n[unlabeled]\ncutmix = 0.25\n')
    config = load_toml(path)
    assert (config.batch_size, config.steps) == (8, 7)
    assert (config.unlabeled.ratio, config.unlabeled.cutmix) == (5, 0.25)


def test_the_rows_of_the_ablations_differ_in_what_they_say() -> None:
    def row(name: str) -> UnlabeledSection:
        return load_toml(ROOT / "configs" / "ablation" / f"{name}.toml").unlabeled

    everything = load_toml(ROOT / "configs" / "student-vits.toml").unlabeled
    assert everything.align == "start"
    assert everything.augment == STRONG
    assert row("alignment") == everything
    assert row("cutmix") == dataclasses.replace(everything, align="")
    plain = dataclasses.replace(STRONG, jitter=0.0, grayscale=0.0, blur=0.0)
    assert row("naive") == dataclasses.replace(everything, align="", cutmix=0.0, augment=plain)
    assert row("labeled-only").path == ""
    for alpha in (1.0, 0.9, 0.8, 0.75, 0.7):
        expected = dataclasses.replace(everything, align_margin=alpha)
        assert row(f"alpha-{alpha:.2f}") == expected


def test_encoder_init_is_short_for_its_key() -> None:
    assert parse_args(["--encoder-init", "dinov2"]).model.encoder_init == "dinov2"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes('out = "Größe"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.toml is not valid TOML.*utf-8"):
        load_toml(tmp_path / "config.toml")


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric.max-depth", "20", "--segmentation.data", "synthetic"], "exclude each other"),
        (["--segmentation.data", "list", "--gradient-matching", "1"], "gradient_matching does not"),
        (
            ["--segmentation.data", "list", "--data.hold-out", "0.5", "--data.path", "a.csv"],
            "hold_out does not divide",
        ),
        (["--metric.max-depth", "20", "--data.shapes", "56", "56", "84", "84"], "shorter side"),
    ],
)
def test_what_does_not_go_together_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_args(options)
