// What the kernels of the add and LayerNorm are given; see add_layer_norm.cpp.
#pragma once

#include <cstdint>

#include "dafast/numbers.h"

namespace dafast::cpu {

constexpr int64_t kMaxChannels = 4096;  // of a row, which is worked on as a whole

// A contiguous tensor (rows, channels); data may be null where it is optional.
struct Rows {
  void* data;
  Dtype dtype;
};

// The vectors are float32, padded with zeros to whole lanes.
struct AddNorm {
  int64_t rows, channels;
  Rows x, branch, s, n;
  const float *gamma, *weight, *bias;
  float* stats;  // mean of all rows, then their inverse standard deviation
  float eps;
};

// Sums of a part's rows: those of gamma's gradient, of the weight's, of the bias's, each `width`.
struct AddNormBackward {
  int64_t rows, channels, width;
  Rows grad_s, grad_n, s, branch, grad_x, grad_branch;
  const float *gamma, *weight, *stats;
};

}  // namespace dafast::cpu
