#include "isa.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#include "decoder_tail_rows.h"

namespace dafast::cpu {
namespace {

struct Avx512Bf16 {
  using Element = uint16_t;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, uint16_t* out) {
    const __m512 second = _mm512_set1_ps(weight), first = _mm512_set1_ps(1.0f - weight);
    for (int64_t i = 0; i < count; i += 16) {
      const __m512 sum = _mm512_fmadd_ps(second, _mm512_loadu_ps(b + i),
                                         _mm512_mul_ps(first, _mm512_loadu_ps(a + i)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), (__m256i)_mm512_cvtneps_pbh(sum));
    }
  }

  static void convolve(const Tail& call, const uint16_t* const window[3], int64_t offset,
                       const uint16_t* weights, float* values) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) sums[p][j] = _mm512_loadu_ps(call.bias1 + 16 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const uint16_t* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; k += 2, weights += 2 * kHidden) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(weights);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(weights + kHidden);
#pragma GCC unroll 12
        for (int64_t p = 0; p < kPixels; ++p) {
          int32_t two;  // channels
          std::memcpy(&two, row + p * channels + k, sizeof two);
          const __m512bh pixel = (__m512bh)_mm512_set1_epi32(two);
          sums[p][0] = _mm512_dpbf16_ps(sums[p][0], pixel, first);
          sums[p][1] = _mm512_dpbf16_ps(sums[p][1], pixel, second);
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      __m512 sum = _mm512_setzero_ps();
      for (int j = 0; j < 2; ++j) {
        const __m512 hidden = _mm512_max_ps(_mm512_setzero_ps(), sums[p][j]);  // NaN stays
        sum = _mm512_fmadd_ps(hidden, _mm512_loadu_ps(call.weights2 + 16 * j), sum);
      }
      values[p] = _mm512_reduce_add_ps(sum);
    }
  }
};

}  // namespace

void tail_rows_avx512_bf16(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  tail_rows<Avx512Bf16, uint16_t>(call, begin, end, scratch);
}

}  // namespace dafast::cpu
#endif
