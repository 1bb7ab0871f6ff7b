"""`scripts/release.sh` refuses a version that is not ready, and says why."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dafast import __version__

ROOT = Path(__file__).resolve().parent.parent
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com")
CHANGES = "# Changelog\n\n## Unreleased\n\nNothing yet.\n\n## 1.2.3 - 2030-01-02\n\n- A thing.\n"
CHANGES += "- Another thing.\n" * 9000  # more than fits into a pipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("git") and shutil.which("bash")), reason="git and bash"),
]


def git(folder: Path, *words: str) -> None:
    subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A small repository with version 1.2.3, in which everything is ready; its CI passes."""
    files = {
        "dafast/_version.py": '__version__ = "1.2.3"\n',
        "CHANGELOG.md": CHANGES,
        "pyproject.toml": '[project.urls]\nSource = "https://example.com/a/b"\n',
        ".ci/run": "#!/bin/sh\necho CI; exit ${CI_ENDS:-0}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / ".ci/run").chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/release.sh", tmp_path / "scripts")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def release(folder: Path, *words: str, **env: str) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["bash", "scripts/release.sh", *words],
        cwd=folder,
        env={**clean, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_ready_version_gets_its_commands(ready: Path):
    code, text = release(ready)
    assert (code, "CI\n" in text) == (0, True), text
    assert 'git tag -a v1.2.3 -m "dafast 1.2.3"' in text and "git remote add origin" in text
    git(ready, "remote", "add", "origin", "git@example.com:a/b.git")
    code, text = release(ready, "--quick")
    assert (code, "CI\n" in text) == (0, False), text
    assert release(ready, "--other")[0] == 2


EDITS = {
    "a version such as": ("dafast/_version.py", "1.2.3", "1.2.3.dev0"),
    "no heading '## 1.2.4 -": ("dafast/_version.py", "1.2.3", "1.2.4"),
    "no heading '## 1.2.3 -": ("CHANGELOG.md", " - 2030-01-02", " - unreleased"),
    "says nothing about 1.2.3": ("CHANGELOG.md", "- A thing.", "## 1.2.2 - 2029-01-01\n\n- A."),
    "under 'Unreleased'": ("CHANGELOG.md", "Nothing yet.", "- A new thing."),
}


@pytest.mark.parametrize("message", EDITS)
def test_files_that_are_not_ready(ready: Path, message: str):
    name, old, new = EDITS[message]
    path = ready / name
    path.write_text(path.read_text().replace(old, new))
    commit(ready)
    code, text = release(ready)
    assert (code, "CI\n" in text) == (1, False), text
    assert message in text and "is not ready" in text


def test_a_repository_that_is_not_ready(ready: Path):
    (ready / "new.py").write_text("")
    code, text = release(ready)
    assert code == 1 and "changes are not committed: ?? new.py" in text
    commit(ready)
    assert "1 problem(s)" in release(ready, CI_ENDS="3")[1]
    git(ready, "remote", "add", "origin", "https://example.com/other.git")
    code, text = release(ready)
    assert code == 1 and "but origin is https://example.com/other" in text
    git(ready, "tag", "v1.2.3")
    code, text = release(ready)
    assert code == 1 and "the tag v1.2.3 exists" in text and "2 problem(s)" in text


def test_the_version_has_its_section():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {__version__} - 20" in text or "dev" in __version__
