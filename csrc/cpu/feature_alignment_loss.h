// What the kernels of feature alignment are given; see feature_alignment_loss.cpp.
#pragma once

#include <cstdint>

#include "dafast/numbers.h"

namespace dafast::cpu {

// Student and teacher, (batch, tokens, channels); strides in elements. A row is one token's.
struct Features {
  const void* values[2];
  Dtype dtypes[2];
  int64_t strides[2][3];
  int64_t tokens, rows, channels;

  int64_t at(int which, int64_t row) const {
    return row / tokens * strides[which][0] + row % tokens * strides[which][1];
  }
};

// Of some rows: the sum of 1 - cosine of those that take part, and how many do.
struct Alignment {
  double sum;
  int64_t kept;
};

constexpr float kMinNorm = 1e-8f;  // of `torch.nn.functional.cosine_similarity`
constexpr float kLeftOut = 2.0f;   // what stands in place of a cosine above the margin

}  // namespace dafast::cpu
