// Attention with AVX2 and FMA.
#include "flash_attention.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace dafast::cpu {
namespace {

// 12 sums, 2 vectors of the right side, 1 of the left: 15 of 16 registers.
constexpr int LANES = 8, ROWS = 6, VECTORS = 2;
using Floats = __m256;
typedef int Ints __attribute__((vector_size(32)));
#define CONVERT __builtin_convertvector

#include "flash_attention_vectors.h"
//
#include "flash_attention_block.h"

}  // namespace

AttentionKernel flash_attention_avx2() {
  return {false, ROWS, LANES, VECTORS * LANES, SCRATCH, attend<Float32>};
}

}  // namespace dafast::cpu

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
