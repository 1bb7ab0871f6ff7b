#!/usr/bin/env python3
"""Checks docker/Dockerfile without Docker: lints it, runs its steps, and asks the server.

    python scripts/check_docker.py --lint    only reads it
    python scripts/check_docker.py           also runs the steps, in a folder of its own

Steps of apt-get and useradd are not run. The files are those that .dockerignore leaves.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
KNOWN = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE"}
KNOWN |= {"HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions with their arguments; continued lines are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def lint(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    found = []
    steps = instructions(text)
    found += [f"unknown instruction {name}" for name, _ in steps if name not in KNOWN]
    for name, value in steps:
        if name == "FROM" and ("latest" in value or ":" not in value):
            found.append(f"FROM without a version: {value}")
        if name == "RUN" and "apt-get install" in value:
            if "--no-install-recommends" not in value or "/var/lib/apt/lists" not in value:
                found.append(f"apt-get leaves files behind: {value}")
            if "apt-get update" not in value:
                found.append(f"apt-get install without update in one step: {value}")
        if name == "RUN" and re.search(r"\b(sudo|curl [^|]*\|)", value):
            found.append(f"unsafe step: {value}")
        if name == "COPY" and "--from" not in value:
            *sources, _ = value.split()
            found += [f"COPY {s}: missing" for s in sources if not (ROOT / s).exists()]
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    users = [value for name, value in steps[last:] if name == "USER"]
    if not users or users[-1] == "root":
        found.append("the server runs as root")
    if sum(name == "HEALTHCHECK" for name, _ in steps[last:]) != 1:
        found.append("no HEALTHCHECK")
    return found


def copied_files() -> list[str]:
    """Files of the build context: those of Git that .dockerignore leaves."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    patterns = (ROOT / ".dockerignore").read_text().split()

    def is_left_out(path: str) -> bool:
        parents = [path, *map(str, Path(path).parents)]
        names = [pattern.removeprefix("**/") for pattern in patterns]
        return any(fnmatch.fnmatch(each, name) for each in parents for name in names)

    return [path for path in listed if path and not is_left_out(path)]


def run_steps(work: Path) -> None:
    """Runs the steps of the build stage, and the command of the last one."""
    context = work / "src"
    for path in copied_files():
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        (context / path).write_bytes((ROOT / path).read_bytes())
    environment = {**os.environ, "PATH": f"{work}/venv/bin:{os.environ['PATH']}"}
    environment.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONPATH="")
    steps = instructions(DOCKERFILE.read_text())
    for name, value in steps:
        if name == "ARG" and "=" in value:
            key, given = value.split("=", 1)
            environment.setdefault(key, given)
        if name != "RUN" or "apt-get" in value or "useradd" in value:
            continue
        value = value.replace("python -m venv /venv", f"{sys.executable} -m venv {work}/venv")
        print(f"+ {value}", flush=True)
        subprocess.run(["bash", "-euc", value], cwd=context, env=environment, check=True)
    ask_server(work, environment, steps)


def ask_server(work: Path, environment: dict[str, str], steps: list[tuple[str, str]]) -> None:
    """Starts what ENTRYPOINT and CMD say, sends a photo, and ends it."""
    parts = {name: value for name, value in steps if name in ("ENTRYPOINT", "CMD")}
    command = [*eval(parts["ENTRYPOINT"]), *eval(parts["CMD"]), "--port", "0"]
    print("+", shlex.join(command), flush=True)
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().rsplit(":", 1)[1].strip()
            photo = (ROOT / "examples/photos/coffee.jpg").read_bytes()
            start = time.monotonic()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/depth", photo)
            with urllib.request.urlopen(request, timeout=300) as answer:
                assert answer.read(8) == b"\x89PNG\r\n\x1a\n"
            print(f"a photo: {time.monotonic() - start:.1f} s")
        finally:
            server.terminate()
    assert server.returncode == 0, server.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lint", action="store_true")
    options = parser.parse_args()
    problems = lint(DOCKERFILE.read_text())
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems or options.lint:
        return bool(problems)
    with tempfile.TemporaryDirectory() as folder:
        run_steps(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
