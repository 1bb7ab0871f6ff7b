// Separable bicubic resize of one range of rows, without torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dafast/cubic.h"

namespace dafast {

// The horizontal half of a resize, the same for every row.
class CubicColumns {
 public:
  CubicColumns(int64_t source, int64_t target) : source_(source), taps_(target) {
    for (int64_t i = 0; i < target; ++i) taps_[i] = cubic_taps(i, source, target);
    // first grows with i, so the columns with all four taps inside are contiguous.
    while (inner_begin_ < target && taps_[inner_begin_].first < 0) ++inner_begin_;
    inner_end_ = inner_begin_;
    while (inner_end_ < target && taps_[inner_end_].first + 3 < source) ++inner_end_;
  }

  int64_t size() const { return static_cast<int64_t>(taps_.size()); }

  // row[stride * x] for x in [0, source) -> out[0 .. size())
  template <typename T>
  void resize(const T* row, int64_t stride, float* out) const {
    border(row, stride, out, 0, inner_begin_);
    for (int64_t i = inner_begin_; i < inner_end_; ++i) {
      const CubicTaps& taps = taps_[i];
      const T* p = row + taps.first * stride;
      out[i] = taps.weights[0] * static_cast<float>(p[0]) +
               taps.weights[1] * static_cast<float>(p[stride]) +
               taps.weights[2] * static_cast<float>(p[2 * stride]) +
               taps.weights[3] * static_cast<float>(p[3 * stride]);
    }
    border(row, stride, out, inner_end_, size());
  }

 private:
  template <typename T>
  void border(const T* row, int64_t stride, float* out, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      float sum = 0.0f;
      for (int k = 0; k < 4; ++k) {
        const int64_t x = clamp_index(taps_[i].first + k, source_);
        sum += taps_[i].weights[k] * static_cast<float>(row[x * stride]);
      }
      out[i] = sum;
    }
  }

  int64_t source_;
  std::vector<CubicTaps> taps_;
  int64_t inner_begin_ = 0;
  int64_t inner_end_ = 0;
};

// One plane of the source, with strides in elements: rows of any layout are read in place.
template <typename T>
struct Plane {
  const T* data;
  int64_t height;
  int64_t row_stride;
  int64_t column_stride;
};

// Rows [begin, end) of the target, each columns.size() wide and contiguous in `out`, which points
// at row `begin`. Each source row that is needed is resized once, and kept in a ring of four rows.
template <typename T>
void resize_bicubic_rows(const Plane<T>& source, const CubicColumns& columns, int64_t target_height,
                         int64_t begin, int64_t end, float* out) {
  const int64_t width = columns.size();
  std::vector<float> ring(static_cast<size_t>(4 * width));
  int64_t held[4] = {-1, -1, -1, -1};
  for (int64_t y = begin; y < end; ++y) {
    const CubicTaps taps = cubic_taps(y, source.height, target_height);
    const float* rows[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t row = clamp_index(taps.first + k, source.height);
      // The four rows are consecutive or equal, so different rows have different slots.
      float* slot = ring.data() + (row & 3) * width;
      if (held[row & 3] != row) {
        columns.resize(source.data + row * source.row_stride, source.column_stride, slot);
        held[row & 3] = row;
      }
      rows[k] = slot;
    }
    float* target = out + (y - begin) * width;
    for (int64_t x = 0; x < width; ++x) {
      target[x] = taps.weights[0] * rows[0][x] + taps.weights[1] * rows[1][x] +
                  taps.weights[2] * rows[2][x] + taps.weights[3] * rows[3][x];
    }
  }
}

}  // namespace dafast
