"""The root of the command line: mistakes, streams, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dafast
from dafast.cli import main
from tests.cli.helpers import contents, photo

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["run", "a.jpg"], "--out"),
        (["run", "a.jpg", "--out", "x", "--palette", "nope"], "inferno"),
        (["run", "a.jpg", "--out", "x", "--size", "0"], "at least 1"),
        (["run", "a.jpg", "--out", ""], "--out: an empty name"),
        (["synth", "--scenes", "1", "--out", ""], "--out: an empty name"),
        (["run", "a.jpg", "--out", "s3://b/depth"], "--out: s3://b/depth is a URL"),
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


def dafast_in_bash(arguments: str, redirect: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m dafast {arguments} {redirect}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="redirects in bash")
@pytest.mark.slow  # each starts Python
@pytest.mark.parametrize("redirect", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams(redirect, run, tmp_path, rng, model_folder):
    """Everything is done, and nothing that is printed ends in a file that took the number."""
    source, gone = photo(tmp_path / "a.png", rng), tmp_path / "gone.png"
    assert run(source, gone, "--npy")[0] == 1
    options = f"--model {model_folder} --device cpu --dtype float32 --npy --out {tmp_path / 'new'}"
    result = dafast_in_bash(f"run {source} {gone} {options}", redirect)
    assert result.returncode == 1 and not result.stderr
    assert ("FAILED" in result.stdout) == (redirect == "2>&-")
    assert contents(tmp_path / "new") == contents(tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    command = ["run", str(tmp_path), "--out", str(tmp_path / "out")]  # no photos: it says so
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(command) == 1
        error = capsys.readouterr().err
        assert error == "dafast: error: cannot write the output: No space left on device\n"
        full.flush()  # what was not written does not come back on exit
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", sys.__stdout__)
        monkeypatch.setattr(sys, "stderr", full)
        assert main(["eval", "--json", str(tmp_path)]) == 1
        full.flush()
    monkeypatch.undo()
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(command) == 1
        assert not capsys.readouterr().err


INTERRUPTED = """if True:
    import os, signal, sys
    from dafast.cli import doctor, main
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def press():
        os.kill(os.getpid(), signal.SIGINT)
    class Descriptor:
        def __set_name__(self, owner, name):
            press()
    def command(args):
        {}
    doctor.doctor = command
    sys.argv[1:] = ["doctor"]
    sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process")
@pytest.mark.parametrize(
    "code",
    [
        "press()",
        "exec('press()')",  # of a text: Python would then end with a signal
        "type('Class', (), {'name': Descriptor()})",  # a RuntimeError in Python 3.11
        "\n        try: press()\n        except BaseException: raise ImportError('swallowed')",
        pytest.param(
            "\n        import torch\n        torch.__spec__._initializing = True\n        press()",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_interrupt_at_any_moment_ends_in_one_line(code):
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "dafast: interrupted\n")


def test_help_imports_only_the_standard_library():
    code = """if True:
        import sys
        before = set(sys.modules)
        from dafast.cli import build_parser
        build_parser().format_help()
        brought = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(brought - {*sys.stdlib_module_names, "dafast"}))
    """
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("given", ["{empty}", ""])
def test_an_error_of_dafast_is_one_line(given, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    shards = given.format(empty=tmp_path / "empty")
    assert main(["label", "--model", "nano", "--in", shards, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dafast: error: no shards" if given else "dafast: error: the path of")
