// Attention with AVX-512, in bfloat16 by its dot product.
#include "flash_attention.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the headers of GCC 12
#endif

namespace dafast::cpu {
namespace {

// 24 sums, 4 vectors of the right side, 1 of the left: 29 of 32 registers.
constexpr int LANES = 16, ROWS = 6, VECTORS = 4;
using Floats = __m512;

inline Floats fraction(Floats x) { return _mm512_reduce_ps(x, 0x09); }  // of floor, quietly
inline Floats scaled(Floats y, Floats x) { return _mm512_scalef_ps(y, x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

#include "flash_attention_block.h"

struct BFloat16 {
  static constexpr int PER_CELL = 2, DEGREE = 3;
  static Floats multiply_add(float a, const float* b, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)load(b));
  }
  // In place: half the bytes, so only what has been read is overwritten.
  static void store_probabilities(float* row, int64_t i, Floats p) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(p);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2), halves);
  }
};

}  // namespace

AttentionKernel flash_attention_avx512_bf16() {
  return {true, ROWS, LANES, VECTORS * LANES, SCRATCH, attend<BFloat16>};
}

}  // namespace dafast::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
