#!/usr/bin/env bash
# Installs a wheel in a fresh environment, away from the checkout, and uses it:
#   scripts/check_wheel.sh WHEEL [PYTHON]
# Predicts, renders 20 scenes, trains three steps on them, and evaluates.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
python=${2:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

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
