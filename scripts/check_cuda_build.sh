#!/usr/bin/env bash
# Builds the extension with CUDA kernels for every architecture against a CUDA build of PyTorch,
# imports it, and runs the tests of its ops. Needs nvcc and a C++ compiler, but no GPU: without one,
# the tests of the CUDA kernels are skipped.
#
#   scripts/check_cuda_build.sh [VENV]    VENV is kept for the next run; without it, the script
#                                         creates a temporary one (downloads 3 GB, uses 8 GB of disk)
set -euo pipefail
cd "$(dirname "$0")/.."

torch=${TORCH:-torch==2.14.1}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${1:-$work/venv}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
venv=$(cd "$venv" && pwd)
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$torch" "setuptools>=77" wheel \
    pybind11 ninja numpy pillow safetensors huggingface_hub tqdm tyro pytest opencv-python-headless

# Build in a copy, so that the checkout keeps its extension.
mkdir "$work/source"
cp -r setup.py pyproject.toml MANIFEST.in README.md LICENSE dafast kernels csrc bench tests "$work/source"
find "$work/source" -name '*.so' -delete
cd "$work/source"

# PyTorch brings headers that it includes and a toolkit without libraries lacks.
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
from pathlib import Path

import torch
from dafast.ops import _extension

extension = _extension.load()
assert extension is not None, _extension.why_missing()
assert extension.cuda, "built without CUDA"
registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
ops = sorted(name for name in registered if name.startswith("dafast_C::"))
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; on CUDA: {', '.join(ops)}")
missing = {f"dafast_C::{file.stem}" for file in Path("csrc/cuda").glob("*.cu")} - set(ops)
assert not missing, f"not registered: {sorted(missing)}"
PYTHON
# cuobjdump is part of the toolkit, or of Triton.
cuobjdump=$CUDA_HOME/bin/cuobjdump
for found in "$venv"/lib/python3.*/site-packages/triton/backends/nvidia/bin/cuobjdump; do
    [ -x "$cuobjdump" ] || cuobjdump=$found
done
[ ! -x "$cuobjdump" ] || "$cuobjdump" --list-elf --list-ptx dafast/_C*.so | grep -oE '(sm_[0-9]+)[.](cubin|ptx)' | sort | uniq -c
"$venv/bin/python" -m pytest -q -p no:cacheprovider \
    tests/ops/test_resize_bilinear.py tests/ops/test_pad.py tests/ops/test_preprocess.py \
    tests/ops/test_affine_invariant_loss_cpu.py tests/ops/test_affine_invariant_loss_gpu.py
