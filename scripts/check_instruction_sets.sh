#!/bin/sh
# Runs the kernels for AVX-VNNI and AMX on a processor that has AVX-512 with BF16 instead.
#
#   scripts/check_instruction_sets.sh FOLDER [pytest arguments]
#
# FOLDER gets a copy of the checkout and an extension in which AVX-VNNI's instruction has the encoding
# of AVX-512, and an emulator computes AMX's tiles (DAFAST_EMULATED in csrc/cpu/each_isa.h). A second
# call compiles only what has changed. Needs what the extension needs: torch, pybind11, ninja, a C++
# compiler. PYTHON is the interpreter to use.
#
# Without pytest arguments the tests of the ops with such kernels run, on these two sets.
set -eu

folder=$(mkdir -p "${1:?usage: scripts/check_instruction_sets.sh FOLDER [pytest arguments]}" &&
  cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

cd "$root"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --update -t "$folder"
cd "$folder"
CFLAGS="-DDAFAST_EMULATED -I$folder/tests/emulated" DAFAST_NO_CUDA=1 \
  "$python" setup.py --quiet build_ext --inplace
[ $# -gt 0 ] || set -- -k "avx_vnni or avx512_amx or emulated" tests/ops/test_linear_int8.py \
  tests/ops/test_encoder_rows_int8.py tests/ops/test_conv3x3_int8.py \
  tests/ops/test_attention_int8.py tests/ops/test_packed_products.py
PYTHONPATH=$folder exec "$python" -m pytest -q -p no:cacheprovider "$@"
