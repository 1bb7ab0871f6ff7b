"""The Slurm and Kubernetes examples of docs/scale.md: syntax, structure, and their commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dafast.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```sh\n(#!/bin/bash\n.*?)^```", PAGE, re.M | re.S)
MANIFESTS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]


def check_command(text: str) -> None:
    """Parses the `dafast` command in a line with the real parser."""
    words = shlex.split(text[re.search(r"(?<![\w-])dafast ", text).start() :])[1:]
    args = build_parser().parse_args(words)
    if words[0] == "train":
        assert (ROOT / words[1]).is_file()
    else:
        assert args.cluster == "ray"


@pytest.mark.parametrize("script", SCRIPTS, ids=["label", "train"])
def test_scripts_of_slurm(script: str, tmp_path: Path) -> None:
    first, *options = script.splitlines()
    assert first == "#!/bin/bash"
    named = [line for line in options if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[\w:-]+)?", line) for line in named)
    assert {"--nodes", "--ntasks-per-node"} <= {line.split()[1].partition("=")[0] for line in named}
    if shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=script, text=True, check=True)
    joined = script.replace("\\\n", " ").splitlines()
    commands = [line for line in joined if re.search(r" dafast (label|train) ", line)]
    assert len(commands) == 1
    check_command(commands[0])


def check_pod(spec: dict[str, Any]) -> None:
    """Checks what the API of Kubernetes requires of a pod."""
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    assert spec["containers"]
    for container in spec["containers"]:
        assert re.fullmatch(r"[a-z0-9-]{1,63}", container["name"])
        assert container["image"]
        resources = container["resources"]
        assert resources["limits"] == resources["requests"], "GPUs have equal limits and requests"
        for name, amount in resources["limits"].items():
            assert isinstance(amount, str)
            assert re.fullmatch(r"\d+(Gi)?", amount), (name, amount)
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        for variable in container.get("env", []):
            assert set(variable) == {"name", "value"} and isinstance(variable["value"], str)


def test_manifests_are_of_both_kinds() -> None:
    assert [manifest["kind"] for manifest in MANIFESTS] == ["RayJob", "JobSet"]
    for manifest in MANIFESTS:
        assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}


def test_the_job_of_kuberay() -> None:
    manifest = MANIFESTS[0]
    assert manifest["apiVersion"] == "ray.io/v1"
    spec = manifest["spec"]
    assert set(spec) == {"entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "rayClusterSpec"}
    check_command(spec["entrypoint"])
    cluster = spec["rayClusterSpec"]
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    check_pod(head["template"]["spec"])
    for group in groups:
        assert set(group) == {
            *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template")
        }
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        check_pod(group["template"]["spec"])
    gpus = [
        int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        * group["maxReplicas"]
        for group in groups
        if group["groupName"] == "gpus"
    ]
    assert f"--cluster-models {sum(gpus)}" in spec["entrypoint"], "one for each GPU there may be"


def test_the_job_set() -> None:
    manifest = MANIFESTS[1]
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0, "the set starts again"
    check_pod(pod)
    command = pod["containers"][0]["command"]
    assert f"--nnodes={spec['completions']}" in command
    name = manifest["metadata"]["name"]
    (endpoint,) = [word for word in command if word.startswith("--rdzv-endpoint=")]
    # JobSet's names: SET-JOB-INDEX-POD.SUBDOMAIN, and the subdomain is the set's name.
    assert endpoint == f"--rdzv-endpoint={name}-{job['name']}-0-0.{name}:29500"
    check_command(shlex.join(command))
