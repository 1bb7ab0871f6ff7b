// The kernels of add_layer_norm.cpp, for one instruction set.
#include "lanes.h"
#include "norm_row.h"

inline const float* load_row(const Rows& x, int64_t row, int64_t channels, float* buffer) {
  return load(x.data, x.dtype, row * channels, 1, channels, buffer);
}

// s = x + branch * gamma of a padded row, and its sum.
inline float add(const float* x, const float* branch, const float* gamma, int64_t padded,
                 float* s) {
  Sum sum;
  for (int64_t i = 0; i < padded; i += kLanes) {
    for (int part = 0; part < kRegisters; ++part) {
      const int64_t at = i + kWide * part;
      Lanes value, y, z;
      get(x + at, value);
      get(branch + at, y);
      get(gamma + at, z);
      value += y * z;
      put(value, s + at);
      sum.parts[part] += value;
    }
  }
  return sum.total();
}

void normalise_rows(const AddNorm& call, int64_t begin, int64_t end) {
  alignas(64) float x_buffer[kMaxChannels], branch_buffer[kMaxChannels];
  alignas(64) float s_buffer[kMaxChannels], n_buffer[kMaxChannels];
  const int64_t channels = call.channels, padded = whole(channels);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * channels;
    const float* x = load_row(call.x, row, channels, x_buffer);
    const float* branch = load_row(call.branch, row, channels, branch_buffer);
    float* DAFAST_RESTRICT s = place(call.s.data, call.s.dtype, at, channels, s_buffer);
    float sum = add(x, branch, call.gamma, padded, s);
    store(s, channels, call.s.data, call.s.dtype, at);
    if (call.s.dtype != Dtype::float32) {  // the statistics of s as it is returned
      load_row(call.s, row, channels, s);
      sum = sum_of(s, padded);
    }
    float* n = place(call.n.data, call.n.dtype, at, channels, n_buffer);
    const RowMoments moments = normalise(s, sum, channels, call.weight, call.bias, call.eps, n);
    store(n, channels, call.n.data, call.n.dtype, at);
    call.stats[row] = moments.mean;
    call.stats[call.rows + row] = moments.rstd;
  }
}

void write_gradients(const AddNormBackward& call, int64_t begin, int64_t end, float* sums) {
  alignas(64) float s_buffer[kMaxChannels], branch_buffer[kMaxChannels];
  alignas(64) float out_s_buffer[kMaxChannels], out_n_buffer[kMaxChannels];
  alignas(64) float grad[kMaxChannels], normed[kMaxChannels], ahead[kMaxChannels];
  alignas(64) float result_buffer[kMaxChannels];
  const int64_t channels = call.channels, padded = call.width;
  const float* DAFAST_RESTRICT gamma = call.gamma;
  const float* DAFAST_RESTRICT weight = call.weight;
  float* DAFAST_RESTRICT gamma_sum = sums;
  float* DAFAST_RESTRICT weight_sum = sums + padded;
  float* DAFAST_RESTRICT bias_sum = sums + 2 * padded;
  for (int64_t i = 0; i < 3 * padded; ++i) sums[i] = 0.0f;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * channels;
    const float* DAFAST_RESTRICT branch = load_row(call.branch, row, channels, branch_buffer);
    for (int64_t i = 0; i < padded; ++i) grad[i] = 0.0f;
    if (call.grad_s.data) {
      const float* DAFAST_RESTRICT grad_s = load_row(call.grad_s, row, channels, out_s_buffer);
      for (int64_t i = 0; i < padded; ++i) grad[i] = grad_s[i];
    }
    if (call.grad_n.data) {
      const float* DAFAST_RESTRICT s = load_row(call.s, row, channels, s_buffer);
      const float* DAFAST_RESTRICT grad_n = load_row(call.grad_n, row, channels, out_n_buffer);
      const float mean = call.stats[row], rstd = call.stats[call.rows + row];
      for (int64_t i = 0; i < padded; ++i) normed[i] = (s[i] - mean) * rstd;
      for (int64_t i = 0; i < padded; ++i) ahead[i] = grad_n[i] * weight[i];
      const float along = sum_of(ahead, padded) / static_cast<float>(channels);
      const float across = sum_of_products(ahead, normed, padded) / static_cast<float>(channels);
      for (int64_t i = 0; i < padded; ++i) {
        grad[i] += rstd * (ahead[i] - along - across * normed[i]);
        weight_sum[i] += grad_n[i] * normed[i];
        bias_sum[i] += grad_n[i];
      }
    }
    store(grad, channels, call.grad_x.data, call.grad_x.dtype, at);
    float* DAFAST_RESTRICT result =
        place(call.grad_branch.data, call.grad_branch.dtype, at, channels, result_buffer);
    for (int64_t i = 0; i < padded; ++i) {
      gamma_sum[i] += grad[i] * branch[i];
      result[i] = grad[i] * gamma[i];
    }
    store(result, channels, call.grad_branch.data, call.grad_branch.dtype, at);
  }
}
