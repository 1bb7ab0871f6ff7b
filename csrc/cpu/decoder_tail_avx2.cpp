#include "isa.h"

#ifdef DAFAST_X86
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#include "decoder_tail_rows.h"

namespace dafast::cpu {
namespace {

struct Avx2 {
  using Element = float;
  static constexpr int64_t kPixels = 3;  // of 4 registers each

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    __m256 sums[kPixels][4];
    for (int64_t p = 0; p < kPixels; ++p) {
      for (int j = 0; j < 4; ++j) sums[p][j] = _mm256_loadu_ps(call.bias1 + 8 * j);
    }
    const int64_t channels = call.channels;
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * channels; ++k, weights += kHidden) {
        __m256 pixel[kPixels];
        for (int64_t p = 0; p < kPixels; ++p) pixel[p] = _mm256_broadcast_ss(row + p * channels + k);
        for (int j = 0; j < 4; ++j) {
          const __m256 weight = _mm256_loadu_ps(weights + 8 * j);
          for (int64_t p = 0; p < kPixels; ++p) {
            sums[p][j] = _mm256_fmadd_ps(pixel[p], weight, sums[p][j]);
          }
        }
      }
    }
    for (int64_t p = 0; p < kPixels; ++p) {
      __m256 sum = _mm256_setzero_ps();
      for (int j = 0; j < 4; ++j) {
        const __m256 hidden = _mm256_max_ps(_mm256_setzero_ps(), sums[p][j]);  // NaN stays
        sum = _mm256_fmadd_ps(hidden, _mm256_loadu_ps(call.weights2 + 8 * j), sum);
      }
      const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
      const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
      values[p] = _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }
  }
};

}  // namespace

void tail_rows_avx2(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  call.bfloat16 ? tail_rows<Avx2, uint16_t>(call, begin, end, scratch)
                : tail_rows<Avx2, float>(call, begin, end, scratch);
}

}  // namespace dafast::cpu
#endif
