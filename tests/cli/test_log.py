"""`-v` and `-q`, the logger, notes on licenses, and optional packages that are missing."""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dafast
from dafast import optional
from dafast.cli import build_parser, main
from dafast.cli._log import add_verbosity, log_to_stderr
from dafast.config import PRESETS
from dafast.models import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of all commands."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return [parser]
    return [leaf for a in groups for command in a.choices.values() for leaf in leaves(command)]


def test_every_command_has_both_options() -> None:
    parsers = [p for p in leaves(build_parser()) if "-" in p.prefix_chars]  # train has its own
    assert len(parsers) >= 8
    for parser in parsers:
        options = parser.format_help()
        assert "--verbose" in options and "--quiet" in options, parser.prog


@pytest.mark.parametrize("before", [True, False])
def test_the_options_work_before_and_after_the_command(
    before: bool, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["data", "pack", str(tmp_path), "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "loud")]) == 0
    assert "pack: shard-000000.tar" in capsys.readouterr().err
    quiet = [*command, "--out", str(tmp_path / "quiet")]
    assert main(["-q", *quiet] if before else [*quiet, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert list((tmp_path / "quiet").glob("*.tar"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [([], ["warning"]), (["-q"], []), (["-v"], ["info", "warning"])],
    ids=["plain", "quiet", "verbose"],
)
def test_levels(options, shown, monkeypatch, capsys) -> None:
    from dafast.cli import doctor

    log = logging.getLogger("dafast.some.part")
    before = log.parent, logging.getLogger("dafast").level

    def speak(args: argparse.Namespace) -> int:
        for name in ("debug", "info", "warning"):
            getattr(log, name)(name)
        return 0

    def add_parser(commands: argparse._SubParsersAction) -> None:
        commands.add_parser("doctor").set_defaults(function=speak)

    monkeypatch.setattr(doctor, "add_parser", add_parser)
    # As in a program: pytest's own level of the root logger must not count.
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    for logger in (log, logging.getLogger("dafast")):
        logger.manager._clear_cache()
    assert main([*options, "doctor"]) == 0
    assert capsys.readouterr().err.split() == shown
    assert (log.parent, logging.getLogger("dafast").level) == before


def test_train_takes_them_too(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "-q", "--list-configs", "-v"])
    assert stopped.value.code == 0
    assert "nano-teacher" in capsys.readouterr().out


@pytest.mark.slow
def test_in_a_program_without_logging(tmp_path: Path) -> None:
    """A warning may say that the depth is wrong, so it shows; events show where logging is on."""
    script = tmp_path / "program.py"
    script.write_text(
        "import logging, dafast, numpy as np\n"
        "from dafast.images import as_pixels\n"
        "logging.getLogger('dafast.data').warning('an event')\n"
        "for _ in range(2):\n"
        "    as_pixels(np.linspace(0, 1 / 255, 16).reshape(4, 4), 'image')\n"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    first, line = done.stderr.splitlines()  # of two calls, as `warnings` does it
    assert first.startswith(f"{script}:5: DataWarning: image: ")
    assert line.strip() == "as_pixels(np.linspace(0, 1 / 255, 16).reshape(4, 4), 'image')"


def test_warnings_are_classes_that_can_be_filtered() -> None:
    classes = [getattr(dafast, name) for name in dafast.__all__ if name.endswith("Warning")]
    assert len(classes) == 5 and all(issubclass(each, dafast.DafastWarning) for each in classes)
    assert issubclass(dafast.DafastWarning, UserWarning)


def test_nothing_that_a_user_must_see_is_only_logged() -> None:
    """A library's log is silent by default: what a caller can act on has to be a warning."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dafast").rglob("*.py")
        if re.search(r"logg(er|ing)\.(warning|error|exception|critical)\(", path.read_text("utf-8"))
    }
    # The command line shows warnings as lines of its log; a download that is tried again; a worker
    # of the server that was replaced.
    assert found == {"dafast/cli/_log.py", "dafast/data/remote.py", "dafast/serve/pool.py"}


def test_notes_on_licenses_can_be_filtered(monkeypatch, capsys) -> None:
    monkeypatch.setattr(checkpoint, "_warned_licenses", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", dafast.LicenseWarning)
        with pytest.raises(dafast.LicenseWarning, match="CC-BY-NC"):
            checkpoint._warn_of_license(PRESETS["v2-vitb"])
    checkpoint._warned_licenses.clear()
    with warnings.catch_warnings(), log_to_stderr():
        warnings.simplefilter("always")
        warnings.showwarning = warnings.showwarning
        checkpoint._warn_of_license(PRESETS["v2-vitb"])
    assert capsys.readouterr().err.startswith("The published weights of v2-vitb are under CC-BY-NC")


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("embreex", "synth --scenes 1 --out out --workers 1", "synth"),
        ("embreex", "synth --scenes 2 --shard-size 1 --out out --workers 2", "synth"),
        ("embreex", "eval --model nano --data synthetic", "synth"),
        ("tyro", "train --config nano-teacher", "train"),
        ("kornia", "train --config nano-teacher --data.path here", "train"),
        ("h5py", "data pack megadepth here --out out", "datasets"),
        ("OpenEXR", "data pack irs here --out out", "datasets"),
        ("lmdb", "data pack lsun here --out out", "datasets"),
        ("h5py", "eval --model nano --data nyuv2=here", "eval"),
        ("scipy", "eval --model nano --data ibims1=here", "eval"),
        ("transformers", "data sky here", "sky"),
        ("fsspec", "data check shards http://localhost/x.tar", "remote"),
    ],
)
def test_a_missing_package_is_one_line_that_names_its_extra(
    package: str,
    command: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    if extra == "sky":
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "a.png")
        assert main(["-q", "data", "pack", "photos", "--out", "here", "--workers", "1"]) == 0
    monkeypatch.setattr(optional, "_BROKEN", {package: f"{package} is not installed"})
    assert main(command.split()) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("dafast: error: "), lines
    assert f"dafast[{extra}]" in lines[0] and package in lines[0], lines


def test_verbosity_is_added_once() -> None:
    parser = argparse.ArgumentParser()
    parser.add_subparsers().add_parser("x")
    add_verbosity(parser)
    assert parser.parse_args(["-v", "x"]).verbose == 1
    assert parser.parse_args(["x", "-vv"]).verbose == 2
