// The kernels of bias_gelu.cpp, for one instruction set.
#include "lanes.h"

constexpr int64_t kBlock = 1024;  // elements

// erf(z / sqrt 2) with a relative error of at most 4e-7: z times a minimax polynomial in z^2 up to
// |z| = 5.4. Beyond, erf is 1 to within 7e-8. The polynomial is in powers of 2 (z / 5.4)^2 - 1,
// whose terms do not cancel. At 5.4 it is just above 1, so the final clamp gives exactly 1 from
// there on.
inline float erf_of(float z) {
  constexpr float kEnd = 5.4f;
  constexpr float kCoefficients[] = {
      0.261856228f, -0.130656168f, 0.0969993621f, -0.0784115568f,
      0.0642291605f, -0.0515129268f, 0.0393224582f, -0.0278453492f,
      0.0191853475f, -0.0135884304f, 0.00752949994f, -0.00222803862f,
      0.00156485231f, -0.00210718811f, 0.000847946678f};
  const float under = z < kEnd ? z : kEnd, at = under > -kEnd ? under : -kEnd;
  const float v = at * at * (2.0f / (kEnd * kEnd)) - 1.0f;
  float sum = kCoefficients[14];
#pragma GCC unroll 16
  for (int k = 13; k >= 0; --k) sum = sum * v + kCoefficients[k];
  const float value = at * sum, below = value < 1.0f ? value : 1.0f;
  return below > -1.0f ? below : -1.0f;
}

#ifdef DAFAST_IN_AVX512
#include "gelu_pieces.h"
#else
inline void gelu_block(const float* DAFAST_RESTRICT z, int64_t count, float* DAFAST_RESTRICT out) {
  for (int64_t i = 0; i < count; ++i) out[i] = z[i] * (0.5f + 0.5f * erf_of(z[i]));
}
#endif

// e^x for x <= 0; 0 where it would be subnormal.
inline float exp_of(float x) {
  const float least = -87.0f, at = x > least ? x : least;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = at * 1.44269504f + kRound, whole_part = shifted - kRound;
  const float rest = (at - whole_part * 0.693359375f) + whole_part * 2.12194440e-4f;
  float sum = 1.0f / 5040.0f;
  sum = sum * rest + 1.0f / 720.0f;
  sum = sum * rest + 1.0f / 120.0f;
  sum = sum * rest + 1.0f / 24.0f;
  sum = sum * rest + 1.0f / 6.0f;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  const float power = float_of((bits_of(shifted) + 127u) << 23);
  return x < least ? 0.0f : sum * power;
}

// Elements [begin, end) of (rows, channels); `bias` is null if x contains it.
void gelu(const GeluTensor& x, const float* bias, int64_t begin, int64_t end, void* out) {
  alignas(64) float x_buffer[kBlock], z_buffer[kBlock], buffer[kBlock];
  int64_t count;
  for (int64_t at = begin; at < end; at += count) {
    // With a bias, a block ends at the end of its row.
    const int64_t column = bias ? at % x.channels : 0;
    const int64_t left = bias && x.channels - column < end - at ? x.channels - column : end - at;
    count = left < kBlock ? left : kBlock;
    const float* z = load(x.data, x.dtype, at, 1, count, x_buffer);
    float* result = place(out, x.dtype, at, count, buffer);
    if (bias) {
      const float* DAFAST_RESTRICT added = bias + column;
      for (int64_t i = 0; i < count; ++i) z_buffer[i] = z[i] + added[i];
      for (int64_t i = count; i < whole(count); ++i) z_buffer[i] = 0.0f;
      z = z_buffer;
    }
    gelu_block(z, whole(count), result);
    store(result, count, out, x.dtype, at);
  }
}

// Rows [begin, end): the gradient of x, and its sums over the rows.
void gelu_gradient(const GeluTensor& x, const GeluTensor& grad, const float* bias, int64_t begin,
                   int64_t end, void* out, float* sums) {
  alignas(64) float x_buffer[kBlock], grad_buffer[kBlock], buffer[kBlock];
  for (int64_t column = 0; column < x.channels; column += kBlock) {
    const int64_t left = x.channels - column, count = left < kBlock ? left : kBlock;
    const float* DAFAST_RESTRICT added = bias + column;
    float* DAFAST_RESTRICT total = sums + column;
    for (int64_t i = 0; i < count; ++i) total[i] = 0.0f;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * x.channels + column;
      const float* DAFAST_RESTRICT from = load(x.data, x.dtype, at, 1, count, x_buffer);
      const float* DAFAST_RESTRICT ahead = load(grad.data, grad.dtype, at, 1, count, grad_buffer);
      float* DAFAST_RESTRICT result = place(out, x.dtype, at, count, buffer);
      for (int64_t i = 0; i < count; ++i) {
        const float z = from[i] + added[i];
        const float below = 0.5f + 0.5f * erf_of(z);  // normal distribution and its density
        const float density = 0.398942280f * exp_of(-0.5f * z * z);
        result[i] = ahead[i] * (below + z * density);
      }
      for (int64_t i = 0; i < count; ++i) total[i] += result[i];
      store(result, count, out, x.dtype, at);
    }
  }
}
