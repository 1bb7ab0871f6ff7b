#!/usr/bin/env bash
# Installs a wheel in a fresh environment, away from the checkout, and uses it:
#   scripts/check_wheel.sh WHEEL [PYTHON]
# Predicts, renders 20 scenes, trains three steps on them, and evaluates. A wheel for Linux must have
# a manylinux tag, as an index asks for, and bring no library and no C++ symbol of PyTorch.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
python=${2:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

case $wheel in
    *linux*)
        if [[ $wheel != *manylinux* ]]; then
            echo "$wheel: no manylinux tag; see CONTRIBUTING.md, Publish" >&2
            exit 1
        fi
        "$python" -m zipfile -e "$wheel" contents
        binaries=$(cd contents && find . -name '*.so*')
        if [[ $binaries != ./dafast/_C.*.so ]]; then
            echo "more than the extension: $binaries" >&2
            exit 1
        fi
        # Names as the compiler writes them: _ZN3c10..., _ZN2at..., _ZN5torch...
        unstable=$(nm -D --undefined-only contents/dafast/_C.*.so |
            grep -E '_Z[A-Za-z]*(3c10|2at|5torch|6caffe2)' || true)
        if [ -n "$unstable" ]; then
            echo "symbols outside of the stable ABI: $unstable" >&2
            exit 1
        fi
        ;;
esac

"$python" -m venv venv
venv/bin/python -m pip --disable-pip-version-check install --quiet -c "$root/constraints.txt" \
    "dafast[train,synth,eval] @ file://$wheel"
export OMP_NUM_THREADS=1 PYTHONSAFEPATH=1
dafast() { echo "+ dafast $*"; venv/bin/dafast "$@"; }

dafast doctor
case $wheel in
    *-none-any.whl) ;;
    *) venv/bin/python -c 'from dafast.ops import _extension as e; assert e.load(), e.why_missing()' ;;
esac
dafast run "$root/examples/photos/room.jpg" --out depth
test -s depth/room_depth.png
dafast synth --scenes 20 --shard-size 10 --workers 2 --out scenes
dafast train --config nano-teacher --steps 3 --data.path scenes --data.eval-path scenes \
    --batch-size 8 --optim.warmup-steps 1 --out run
test -n "$(find run/export -name model.safetensors)"
dafast eval --model nano --data builtin
