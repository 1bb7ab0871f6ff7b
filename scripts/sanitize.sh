#!/usr/bin/env bash
# Runs every Triton and CUDA kernel at small sizes under compute-sanitizer, which checks memory,
# races, initialisation and barriers. With --tests, runs the GPU tests of the CUDA kernels as well.
# Needs a GPU, and the extension built with CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
tests=(tests/ops/test_resize_bilinear.py tests/ops/test_pad.py tests/ops/test_preprocess.py)

command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on the PATH" >&2; exit 1; }
"$python" - <<'PYTHON'
import sys
import torch
from dafast.ops import _extension

if not torch.cuda.is_available():
    sys.exit("PyTorch sees no CUDA GPU here")
if why := _extension.why_not("cuda"):
    sys.exit(why)
PYTHON

# PyTorch's caching allocator would hide accesses past the end of a tensor.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    check=(compute-sanitizer --tool "$tool" --error-exitcode 1)
    "${check[@]}" "$python" scripts/run_small_cases.py
    [ "${1:-}" != --tests ] || "${check[@]}" --kernel-regex kns=dafast \
        "$python" -m pytest -q -m gpu -k "not graph" "${tests[@]}"
done
