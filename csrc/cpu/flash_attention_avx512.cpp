// Attention with AVX-512, in float.
#include "flash_attention.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
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

}  // namespace

AttentionKernel flash_attention_avx512() {
  return {false, ROWS, LANES, VECTORS * LANES, SCRATCH, attend<Float32>};
}

}  // namespace dafast::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
