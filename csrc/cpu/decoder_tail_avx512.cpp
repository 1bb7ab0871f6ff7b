#include "isa.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "decoder_tail_rows.h"

namespace dafast::cpu {
namespace {

struct Avx512 {
  using Element = float;
  static constexpr int64_t kPixels = 12;  // of 2 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    __m512 sums[kPixels][2];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 2; ++j) sums[p][j] = _mm512_loadu_ps(call.bias1 + 16 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; ++k, weights += kHidden) {
        const __m512 first = _mm512_loadu_ps(weights), second = _mm512_loadu_ps(weights + 16);
#pragma GCC unroll 12
        for (int64_t p = 0; p < kPixels; ++p) {
          const __m512 pixel = _mm512_set1_ps(row[p * channels + k]);
          sums[p][0] = _mm512_fmadd_ps(pixel, first, sums[p][0]);
          sums[p][1] = _mm512_fmadd_ps(pixel, second, sums[p][1]);
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

void tail_rows_avx512(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  call.bfloat16 ? tail_rows<Avx512, uint16_t>(call, begin, end, scratch)
                : tail_rows<Avx512, float>(call, begin, end, scratch);
}

}  // namespace dafast::cpu
#endif
