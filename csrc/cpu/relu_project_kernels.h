// The kernels of relu_project.cpp, for one instruction set.
#include "lanes.h"

constexpr int64_t kBlock = 2048;  // values that are converted together: at least kMostChannels

// A NaN stays one.
inline float positive(float x) { return x < 0.0f ? 0.0f : x; }

// Rows [begin, end) of the result.
void project(const ProjectedRows& x, const float* weight, float bias, int64_t begin, int64_t end,
             float* out) {
  alignas(64) float buffer[kBlock];
  const int64_t channels = x.channels, together = kBlock / channels;
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = first + together < end ? first + together : end;
    const float* DAFAST_RESTRICT from =
        load(x.data, x.dtype, first * channels, 1, (last - first) * channels, buffer);
    for (int64_t row = first; row < last; ++row, from += channels) {
      float sums[kLanes];
      for (int j = 0; j < kLanes; ++j) sums[j] = positive(from[j]) * weight[j];
      for (int64_t c = kLanes; c < channels; c += kLanes) {
        for (int j = 0; j < kLanes; ++j) sums[j] += positive(from[c + j]) * weight[c + j];
      }
      for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
      }
      out[row] = bias + sums[0];
    }
  }
}

// Rows [begin, end): the gradient of x, and to sums (C + 1) that of the weight and of the bias.
void project_gradient(const ProjectedRows& x, const float* weight, const float* grad, int64_t begin,
                      int64_t end, void* out, float* sums) {
  alignas(64) float buffer[kBlock], out_buffer[kBlock];
  const int64_t channels = x.channels, together = kBlock / channels;
  for (int64_t c = 0; c <= channels; ++c) sums[c] = 0.0f;
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = first + together < end ? first + together : end;
    const int64_t at = first * channels, count = (last - first) * channels;
    const float* DAFAST_RESTRICT from = load(x.data, x.dtype, at, 1, count, buffer);
    float* DAFAST_RESTRICT result = place(out, x.dtype, at, count, out_buffer);
    // Sums of many rows are made of sums of a block, which round less.
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* DAFAST_RESTRICT factors = weight + c;
      float sum[kLanes] = {};
      for (int64_t row = 0; row < last - first; ++row) {
        const float g = grad[first + row];
        const int64_t from_row = row * channels + c;
        for (int j = 0; j < kLanes; ++j) {
          const float value = from[from_row + j];
          result[from_row + j] = value <= 0.0f ? 0.0f : g * factors[j];
          sum[j] += g * positive(value);
        }
      }
      for (int j = 0; j < kLanes; ++j) sums[c + j] += sum[j];
    }
    float total = 0.0f;
    for (int64_t row = first; row < last; ++row) total += grad[row];
    sums[channels] += total;
    store(result, count, out, x.dtype, at);
  }
}
