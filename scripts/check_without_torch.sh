#!/usr/bin/env bash
# Installs a wheel in a fresh environment without PyTorch and predicts with an exported file there:
#   scripts/check_without_torch.sh WHEEL FILE.onnx [PYTHON]
# FILE.onnx is `dafast export --model nano`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$1")
file=$(realpath "$2")
python=${3:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$python" -m venv venv
pip() { venv/bin/python -m pip --disable-pip-version-check install --quiet "$@"; }
pip --no-deps "$wheel"
pip numpy pillow onnxruntime filelock tqdm
export OMP_NUM_THREADS=1 PYTHONSAFEPATH=1
if venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "PyTorch is installed: this checks nothing" >&2
    exit 1
fi
venv/bin/dafast run "$root/examples/photos/room.jpg" --model "$file" --out depth \
    --formats png16,color,npz,ply,glb,tiff
test -s depth/room_depth.png
venv/bin/python - "$root/examples/photos/room.jpg" "$file" <<'PYTHON'
import sys

import dafast
from dafast.runtime import OnnxModel

result = OnnxModel(sys.argv[2]).predict(sys.argv[1])
assert result.kind == "disparity" and result.values.std() > 0
try:
    dafast.DepthAnything
except ImportError as error:
    print(error)
else:
    raise AssertionError("dafast.DepthAnything needs PyTorch")
PYTHON
if venv/bin/dafast eval 2>error.txt; then
    echo "dafast eval needs PyTorch" >&2
    exit 1
fi
grep "needs PyTorch, which is not installed" error.txt
