"""`dafast train`: one command under four names, configurations by path and by name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from dafast.cli import main
from dafast.training import config_files
from dafast.training.command import parse_args
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.config_files import from_json, load_toml, shipped_configs, to_json
from dafast.training.tasks import metric, relative, segmentation, task_of

ROOT = Path(__file__).parents[2]


def test_shipped_configurations_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    found = shipped_configs()
    assert set(found) == {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix()
        for path in (ROOT / "configs").rglob("*.toml")
    }
    assert all(found.values()), "each starts with a line that says what it is"
    for name in ("finetune", "ablation/cutmix", "finetune.toml"):
        path = ROOT / "configs" / f"{name.removesuffix('.toml')}.toml"
        assert parse_args(["--config", name]) == parse_args([f"--config={path}"])
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--list-configs"])
    assert stopped.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted(found)


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("finetune.toml").write_text('extends = "nano-student"\nsteps = 7\n')
    config = load_toml("finetune.toml")
    assert (config.steps, config.model.preset) == (7, "nano")
    assert config.unlabeled == load_toml("nano-student").unlabeled
    assert load_toml("finetune") != config, "the shipped one"
    for name in ("nowhere", "../pyproject", "/nowhere.toml"):
        with pytest.raises(ConfigError, match=r"cannot read .*--list-configs"):
            load_toml(name)


def test_installed_configurations_are_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a wheel, where no folder lies next to the package."""
    package = tmp_path / "dafast"
    (package / "configs" / "deep").mkdir(parents=True)
    (package / "configs" / "deep" / "mine.toml").write_text("# Mine.\nsteps = 3\n")
    monkeypatch.setattr(config_files, "__file__", str(package / "training" / "config_files.py"))
    assert shipped_configs() == {"deep/mine": "Mine."}
    assert load_toml("deep/mine").steps == 3


@pytest.mark.parametrize("name", ["dafast train", "dafast.train", "train.py"])
def test_one_command_under_several_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--config", "finetune", "--keep", "0"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name == "dafast train":
        code = main(["train", *arguments])
    else:
        run = runpy.run_module if name == "dafast.train" else runpy.run_path
        target = name if name == "dafast.train" else str(ROOT / name)
        with pytest.raises(SystemExit) as stopped:
            run(target, run_name="__main__")
        code = stopped.value.code
    assert code == 1
    assert capsys.readouterr() == ("", "dafast: error: keep must be at least 1\n")


def test_help_has_every_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith("usage: dafast train")
    for option in ("--config", "--list-configs", "--encoder-init", "--steps", "--optim.encoder-lr"):
        assert f" {option}" in text


def test_without_tyro_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train", "--config", "finetune"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dafast: error: training needs tyro (")
    assert line.endswith("): pip install 'dafast[train]'")


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_args(["--keep", "0", "--data.workers", "-1", "--augment.flip", "2"])
    text = str(caught.value)
    assert all(key in text for key in ("keep must", "data.workers must", "augment.flip must"))
    assert "\n" not in text


def test_a_configuration_has_one_task() -> None:
    tasks = {"nano-teacher": relative, "student-vits": relative, "metric-nyu": metric}
    tasks["segmentation-nano"] = segmentation
    identities = []
    for name, module in tasks.items():
        config = load_toml(name)
        assert task_of(config) is module.TASK
        identities.append(task_of(config).identity(config)["learns"])
    assert identities == ["relative depth", "relative depth", "metres", "classes"]


def test_configurations_of_other_versions_are_read() -> None:
    config = load_toml("metric-kitti")
    assert from_json(to_json(config)) == config
    assert from_json('{"steps": 3, "gone": 1, "model": {"preset": "nano", "gone": 2}}') == (
        parse_args(["--steps", "3", "--model.preset", "nano"])
    )
    assert from_json("{}") == TrainConfig()
