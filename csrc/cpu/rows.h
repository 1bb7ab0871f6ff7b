// Resampling row by row on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "dafast/images.h"

namespace dafast::cpu {

// Calls body(begin, end) for parts of the range [0, size) on PyTorch's threads.
void parallel_for(int64_t size, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// Least number of rows of `elements` elements for a thread.
inline int64_t grain_of(int64_t elements) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, elements));
}

// The loops over a row, for one instruction set; see row_loops_kernels.h.
struct RowLoops {
  template <typename T>
  struct Of {
    // Row `y` of the table from rows of `length` contiguous elements.
    void (*blend_rows)(const T* source, int64_t stride, const TapTable& rows, int64_t y,
                       int64_t length, float* out);
    // out[i] = source[i], in float32.
    void (*widen)(const T* source, int64_t count, float* out);
  };
  Of<float> of_float32;
  Of<float16> of_float16;
  Of<bfloat16> of_bfloat16;
  Of<uint8_t> of_uint8;
  // The columns [begin, end) of the table, each a pixel of `channels` contiguous values.
  void (*blend_columns)(const float* row, const TapTable& columns, int64_t begin, int64_t end,
                        int64_t channels, float* out);
  // out[i] = u * a[i] + v * b[i]
  void (*mix)(const float* a, const float* b, float u, float v, int64_t count, float* out);
  // out[i] += weight * a[i]
  void (*add)(const float* a, float weight, int64_t count, float* out);
  // out[i * stride] = values[i], rounded.
  void (*store_float32)(const float* values, int64_t count, float* out, int64_t stride);
  void (*store_float16)(const float* values, int64_t count, float16* out, int64_t stride);
  void (*store_bfloat16)(const float* values, int64_t count, bfloat16* out, int64_t stride);

  const Of<float>& of(float) const { return of_float32; }
  const Of<float16>& of(float16) const { return of_float16; }
  const Of<bfloat16>& of(bfloat16) const { return of_bfloat16; }
  const Of<uint8_t>& of(uint8_t) const { return of_uint8; }
};

const RowLoops& row_loops();

// Computes rows of the target from rows of the source, which have `width` pixels of `channels`
// values. If the target has more rows than the source, columns are blended first, once for each row
// of the source; otherwise rows are blended first.
template <typename T>
class Resampler {
 public:
  Resampler(const TapTable& rows, const TapTable& columns, int64_t width, int64_t target_width,
            int64_t channels, bool enlarges)
      : rows_(rows),
        columns_(columns),
        length_(width * channels),
        target_width_(target_width),
        channels_(channels),
        enlarges_(enlarges),
        row_(static_cast<size_t>(length_)) {}

  // Writes columns [begin, end) of row y to their place in `out`.
  void operator()(const T* source, int64_t stride, int64_t y, int64_t begin, int64_t end,
                  float* out) {
    if (!enlarges_ || rows_.count[y] == 0) {
      loops_.of(T{}).blend_rows(source, stride, rows_, y, length_, row_.data());
      loops_.blend_columns(row_.data(), columns_, begin, end, channels_, out);
      return;
    }
    // The last blended rows of the source are kept: row r in slot r % slots.
    const int64_t slots = rows_.most, size = target_width_ * channels_;
    if (source != held_source_) {
      held_source_ = source;
      held_.assign(static_cast<size_t>(slots), -1);
      blended_.resize(static_cast<size_t>(slots * size));
    }
    for (int k = 0; k < rows_.count[y]; ++k) {
      const int64_t r = rows_.first[y] + k;
      if (held_[r % slots] == r) continue;
      held_[r % slots] = r;
      float* blended = blended_.data() + r % slots * size;
      loops_.of(T{}).widen(source + r * stride, length_, row_.data());
      loops_.blend_columns(row_.data(), columns_, begin, end, channels_, blended);
    }
    const float* weights = rows_.weights + y * rows_.most;
    const auto blended = [&](int k) { return blended_.data() + (rows_.first[y] + k) % slots * size; };
    const int count = rows_.count[y];
    const int64_t first = begin * channels_, size_of_part = (end - begin) * channels_;
    const float v = count > 1 ? weights[1] : 0.0f;
    loops_.mix(blended(0) + first, blended(count > 1 ? 1 : 0) + first, weights[0], v, size_of_part,
               out + first);
    for (int k = 2; k < count; ++k) {
      loops_.add(blended(k) + first, weights[k], size_of_part, out + first);
    }
  }

 private:
  const RowLoops& loops_ = row_loops();
  const TapTable& rows_;
  const TapTable& columns_;
  int64_t length_, target_width_, channels_;
  bool enlarges_;
  std::vector<float> row_, blended_;
  std::vector<int64_t> held_;
  const T* held_source_ = nullptr;
};

inline void store(const float* values, int64_t count, float* out, int64_t stride) {
  row_loops().store_float32(values, count, out, stride);
}

inline void store(const float* values, int64_t count, float16* out, int64_t stride) {
  row_loops().store_float16(values, count, out, stride);
}

inline void store(const float* values, int64_t count, bfloat16* out, int64_t stride) {
  row_loops().store_bfloat16(values, count, out, stride);
}

// Calls body with a value of the type of `dtype`.
template <typename Body>
void with_type(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float16) return body(float16{});
  if (dtype == Dtype::bfloat16) return body(bfloat16{});
  body(float{});
}

}  // namespace dafast::cpu
