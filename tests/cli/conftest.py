"""`dafast run` as a fixture."""

from __future__ import annotations

import pytest

from dafast.cli import main
from tests.cli.helpers import save_model
from tests.tiny import TINY


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), TINY)


@pytest.fixture
def run(model_folder, tmp_path, capsys):
    """Runs `dafast run` into tmp_path/out; gives exit code and what was printed."""

    def call(*arguments, out=None, model=model_folder) -> tuple[int, str]:
        out = tmp_path / "out" if out is None else out
        command = ["run", "--dtype", "float32", "--device", "cpu", *map(str, arguments)]
        code = main([*command, "--out", str(out), "--model", model])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call
