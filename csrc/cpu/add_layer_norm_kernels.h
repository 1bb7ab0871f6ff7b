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

// The gradients of a row of s that come from its normalised values, in two passes over the row.
struct NormGradient {
  const float *s, *ahead, *weight;  // `ahead` is the gradient of the result
  Lanes mean, rstd, along, across;

  NormGradient(const float* s, const float* ahead, const float* weight, float mean, float rstd)
      : s(s), ahead(ahead), weight(weight), mean(all(mean)), rstd(all(rstd)) {}

  Lanes normed(int64_t i) const { return (at(s + i) - mean) * rstd; }

  // The sums over the row, and those of weight and bias over the rows.
  void sum(int64_t padded, int64_t channels, float* weight_sum, float* bias_sum) {
    Sum along_sum, across_sum;
    for (int64_t i = 0; i < padded; i += kLanes) {
      for (int part = 0; part < kRegisters; ++part) {
        const int64_t j = i + kWide * part;
        const Lanes grad = at(ahead + j), weighted = grad * at(weight + j), value = normed(j);
        along_sum.parts[part] += weighted;
        across_sum.parts[part] += weighted * value;
        add_to(weight_sum + j, grad * value);
        add_to(bias_sum + j, grad);
      }
    }
    along = all(along_sum.total() / static_cast<float>(channels));
    across = all(across_sum.total() / static_cast<float>(channels));
  }

  Lanes of(int64_t i) const {
    return rstd * (at(ahead + i) * at(weight + i) - along - across * normed(i));
  }
};

void write_gradients(const AddNormBackward& call, int64_t begin, int64_t end, float* sums) {
  alignas(64) float s_buffer[kMaxChannels], branch_buffer[kMaxChannels];
  alignas(64) float out_s_buffer[kMaxChannels], out_n_buffer[kMaxChannels];
  alignas(64) float grad_buffer[kMaxChannels], result_buffer[kMaxChannels];
  const int64_t channels = call.channels, padded = call.width;
  float* const gamma_sum = sums;
  float* const weight_sum = sums + padded;
  float* const bias_sum = sums + 2 * padded;
  for (int64_t i = 0; i < 3 * padded; ++i) sums[i] = 0.0f;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * channels;
    const float* branch = load_row(call.branch, row, channels, branch_buffer);
    const float *grad_s = nullptr, *s = nullptr, *grad_n = nullptr;
    if (call.grad_s.data) grad_s = load_row(call.grad_s, row, channels, out_s_buffer);
    if (call.grad_n.data) {
      s = load_row(call.s, row, channels, s_buffer);
      grad_n = load_row(call.grad_n, row, channels, out_n_buffer);
    }
    NormGradient norm(s, grad_n, call.weight, call.stats[row], call.stats[call.rows + row]);
    if (grad_n) norm.sum(padded, channels, weight_sum, bias_sum);
    float* const grad = place(call.grad_x.data, call.grad_x.dtype, first, channels, grad_buffer);
    float* const result =
        place(call.grad_branch.data, call.grad_branch.dtype, first, channels, result_buffer);
    for (int64_t i = 0; i < padded; i += kWide) {
      Lanes value = grad_s ? at(grad_s + i) : all(0.0f);
      if (grad_n) value += norm.of(i);
      put(value, grad + i);
      add_to(gamma_sum + i, value * at(branch + i));
      put(value * at(call.gamma + i), result + i);
    }
    store(grad, channels, call.grad_x.data, call.grad_x.dtype, first);
    store(result, channels, call.grad_branch.data, call.grad_branch.dtype, first);
  }
}
