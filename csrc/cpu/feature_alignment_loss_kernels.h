// The kernels of feature_alignment_loss.cpp, for one instruction set.
#include "lanes.h"

constexpr int64_t kBlock = 1024;  // channels

// One row's block of both maps, padded with zeros.
struct RowBlock {
  alignas(64) float buffers[2][kBlock];
  const float* values[2];
  int64_t count;
};

inline void load_block(const Features& features, int64_t row, int64_t channel, RowBlock& out) {
  const int64_t left = features.channels - channel;
  out.count = left < kBlock ? left : kBlock;
  for (int which = 0; which < 2; ++which) {
    const int64_t stride = features.strides[which][2];
    out.values[which] = load(features.values[which], features.dtypes[which],
                             features.at(which, row) + channel * stride, stride, out.count,
                             out.buffers[which]);
  }
}

// Rows [begin, end). Writes to `stats` the cosines (or kLeftOut), the inverse norms of the student,
// infinite for a zero vector, and the inverse norms of the teacher, at most 1 / kMinNorm.
void compare_rows(const Features& features, float margin, int64_t begin, int64_t end, float* stats,
                  Alignment* out) {
  RowBlock block;
  *out = {};
  for (int64_t row = begin; row < end; ++row) {
    float dot = 0.0f, s_square = 0.0f, t_square = 0.0f;
    for (int64_t channel = 0; channel < features.channels; channel += kBlock) {
      load_block(features, row, channel, block);
      const float* s = block.values[0];
      const float* t = block.values[1];
      dot += sum_of_products(s, t, whole(block.count));
      s_square += sum_of_products(s, s, whole(block.count));
      t_square += sum_of_products(t, t, whole(block.count));
    }
    const float s_norm = __builtin_sqrtf(s_square), t_norm = __builtin_sqrtf(t_square);
    const float s_inverse = 1.0f / (s_norm < kMinNorm ? kMinNorm : s_norm);  // keeps NaN
    const float t_inverse = 1.0f / (t_norm < kMinNorm ? kMinNorm : t_norm);
    const float cosine = dot * s_inverse * t_inverse;
    const bool kept = !(cosine > margin);  // not `<=`: NaN must reach the loss
    stats[row] = kept ? cosine : kLeftOut;
    stats[features.rows + row] = 1.0f / s_norm;
    stats[2 * features.rows + row] = t_inverse;
    if (kept) {
      out->sum += 1.0f - cosine;
      ++out->kept;
    }
  }
}

// The gradient of the student in rows [begin, end), contiguous; skipped rows are not
// read.
void write_gradient(const Features& features, const float* stats, float factor, int64_t begin,
                    int64_t end, void* out) {
  RowBlock block;
  alignas(64) float buffer[kBlock];
  const Dtype dtype = features.dtypes[0];
  for (int64_t row = begin; row < end; ++row) {
    const float cosine = stats[row], inverse = stats[features.rows + row];
    // PyTorch clamps the norm's value, not its derivative.
    const float s_inverse = inverse > 1.0f / kMinNorm ? 1.0f / kMinNorm : inverse;  // keeps NaN
    const float derivative = __builtin_isinf(inverse) ? 0.0f : inverse;
    const float by_teacher = -factor * s_inverse * stats[2 * features.rows + row];
    const float by_student = factor * cosine * s_inverse * derivative;
    for (int64_t channel = 0; channel < features.channels; channel += kBlock) {
      const int64_t left = features.channels - channel, at = row * features.channels + channel;
      const int64_t count = left < kBlock ? left : kBlock;
      float* DAFAST_RESTRICT result = place(out, dtype, at, count, buffer);
      if (cosine == kLeftOut) {
        for (int64_t i = 0; i < count; ++i) result[i] = 0.0f;
      } else {
        load_block(features, row, channel, block);
        const float* DAFAST_RESTRICT s = block.values[0];
        const float* DAFAST_RESTRICT t = block.values[1];
        for (int64_t i = 0; i < count; ++i) result[i] = by_student * s[i] + by_teacher * t[i];
      }
      store(result, count, out, dtype, at);
    }
  }
}
