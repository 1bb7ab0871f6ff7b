#!/usr/bin/env bash
# Runs `make quick` with other versions of Python, PyTorch and numpy, each in a fresh environment:
#   scripts/try_versions.sh              all pairs below
#   scripts/try_versions.sh oldest pin   only these
# Every environment takes some minutes and up to a few GB of disk, and is removed afterwards.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

newest_python=""
for candidate in python3.15 python3.14 python3.13 python3.12 python3.11; do
    if [ -z "$newest_python" ] && "$candidate" --version >/dev/null 2>&1; then
        newest_python=$candidate
    fi
done
pin=$(sed -n 's/^torch==//p' "$root/constraints.txt")

# name: Python, requirement of torch, requirement of numpy
declare -A pairs=(
    [oldest]="python3.11 torch==2.11.* numpy==1.26.*"
    [pin]="python3.11 torch==$pin numpy"
    [pin-new-python]="$newest_python torch==$pin numpy"
    [newest]="$newest_python torch numpy"
)
if [ $# -eq 0 ]; then set -- oldest pin pin-new-python newest; fi

export DAFAST_NO_CUDA=1 # scripts/check_cuda_build.sh checks the CUDA kernels
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()
for name in "$@"; do
    [ -n "${pairs[$name]:-}" ] || { echo "no pair $name; there are: ${!pairs[*]}" >&2; exit 2; }
    read -r python torch numpy <<<"${pairs[$name]}"
    echo "== $name: $python, $torch, $numpy"
    # A copy of the tracked files with its own .venv and its own build of the extension.
    mkdir "$work/$name"
    git -C "$root" ls-files -z | (cd "$root" && xargs -0 tar c) | tar x -C "$work/$name"
    {
        grep -v '^torch==' "$root/constraints.txt"
        for requirement in "$torch" "$numpy"; do
            case $requirement in *==*) echo "$requirement" ;; esac
        done
    } >"$work/$name/constraints.txt"
    if make -C "$work/$name" quick PYTHON="$python"; then
        "$work/$name/.venv/bin/python" -c \
            'import sys, numpy, torch; print("passed with Python", sys.version.split()[0], "torch", torch.__version__, "numpy", numpy.__version__)'
    else
        failed+=("$name")
    fi
    rm -rf "${work:?}/$name"
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
