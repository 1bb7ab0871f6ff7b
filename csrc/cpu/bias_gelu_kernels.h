// The kernels of bias_gelu.cpp, for one instruction set.
#include "lanes.h"
#include "gelu_block.h"

constexpr int64_t kBlock = 1024;  // elements

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
