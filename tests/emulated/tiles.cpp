// The products of tile_int8.h and tile_float.h in AVX-VNNI and AMX, and the emulator itself, for
// tests/ops/test_emulated_tiles.py. Build with -DDAFAST_EMULATED.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "weights_float.h"

#define DAFAST_KERNELS "tiles_kernels.h"
#define DAFAST_KERNELS_FOR_VNNI
#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {

// 16 `width` columns; returns the number of rows.
extern "C" int bytes_product(bool amx, int width, const uint8_t* left, int64_t row_stride,
                             int64_t runs, int64_t run_stride, int64_t steps,
                             const int8_t* right, const int32_t* start, int32_t* out) {
  return (amx ? avx512_amx::bytes_product : avx_vnni::bytes_product)(
      width, left, row_stride, runs, run_stride, steps, right, start, out);
}

// 16 rows and 32 columns of pairs of bfloat16.
extern "C" void pairs_product(const float* left, int64_t row_stride, int64_t runs,
                              int64_t run_stride, int64_t steps, const float* right,
                              const float* start, int64_t start_stride, float* out) {
  avx512_amx::pairs::product(left, row_stride, runs, run_stride, steps, right, start, start_stride,
                             out);
}

// One instruction of the emulator; returns its error, or "".
extern "C" const char* instruction(const char* name, int a, int b, int c, void* memory,
                                   int64_t stride) {
  static std::string error;
  error.clear();
  const std::string which = name;
  try {
    if (which == "ldtilecfg") _tile_loadconfig(memory);
    if (which == "tilerelease") _tile_release();
    if (which == "tileloadd") _tile_loadd(a, memory, stride);
    if (which == "tilestored") _tile_stored(a, memory, stride);
    if (which == "tilezero") _tile_zero(a);
    if (which == "tdpbusd") _tile_dpbusd(a, b, c);
    if (which == "tdpbssd") _tile_dpbssd(a, b, c);
    if (which == "tdpbf16ps") _tile_dpbf16ps(a, b, c);
  } catch (const std::logic_error& caught) {
    error = caught.what();
  }
  return error.c_str();
}

}  // namespace dafast::cpu
