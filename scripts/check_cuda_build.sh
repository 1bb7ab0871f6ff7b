#!/usr/bin/env bash
# Builds the whole extension, CUDA kernels for every architecture too, against a CUDA build of
# PyTorch; links and imports it, and runs the ops' tests with it. Needs nvcc and a C++ compiler,
# no GPU: where there is none, the tests of the CUDA kernels skip and say so.
#
#   scripts/check_cuda_build.sh [VENV]    VENV is kept for the next time; without it a temporary
#                                         one is made (a download of 3 GB, 8 GB on the disk)
set -euo pipefail
cd "$(dirname "$0")/.."

torch=${TORCH:-torch==2.14.1}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${1:-$work/venv}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
venv=$(cd "$venv" && pwd)
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$torch" setuptools wheel \
    pybind11 ninja numpy pillow safetensors huggingface_hub tqdm tyro pytest opencv-python-headless

# A copy, so that the checkout keeps the extension that it has.
mkdir "$work/source"
cp -r setup.py pyproject.toml MANIFEST.in README.md LICENSE dafast kernels csrc bench tests "$work/source"
find "$work/source" -name '*.so' -delete
cd "$work/source"

# Headers that PyTorch includes and a toolkit without its libraries lacks come with PyTorch.
for include in "$venv"/lib/python3.*/site-packages/nvidia/cu13/include; do
    export CPATH="$include${CPATH:+:$CPATH}"
done
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
[ -x "$CUDA_HOME/bin/nvcc" ] || { echo "no nvcc in $CUDA_HOME/bin; set CUDA_HOME" >&2; exit 1; }
export MAX_JOBS=${MAX_JOBS:-2}
time "$venv/bin/python" setup.py build_ext --inplace >"$work/build.log" 2>&1 || {
    tail -50 "$work/build.log" >&2
    exit 1
}
grep WITHOUT "$work/build.log" && { tail -50 "$work/build.log" >&2; exit 1; }

"$venv/bin/python" - <<'PYTHON'
import torch
from dafast.ops import _extension

extension = _extension.load()
assert extension is not None, _extension.why_missing()
assert extension.cuda, "built without CUDA"
registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
ops = sorted(name for name in registered if name.startswith("dafast_C::"))
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; on CUDA: {', '.join(ops)}")
assert len(ops) == 6, ops
PYTHON
# cuobjdump comes with the toolkit, or with Triton.
cuobjdump=$CUDA_HOME/bin/cuobjdump
for found in "$venv"/lib/python3.*/site-packages/triton/backends/nvidia/bin/cuobjdump; do
    [ -x "$cuobjdump" ] || cuobjdump=$found
done
[ ! -x "$cuobjdump" ] || "$cuobjdump" --list-elf --list-ptx dafast/_C*.so | grep -oE '(sm_[0-9]+)[.](cubin|ptx)' | sort | uniq -c
"$venv/bin/python" -m pytest -q -p no:cacheprovider \
    tests/ops/test_resize_bilinear.py tests/ops/test_pad.py tests/ops/test_preprocess.py
