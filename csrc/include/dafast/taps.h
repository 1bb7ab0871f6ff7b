// A table of the taps of an axis, for all resizes that resample rows and columns.
#pragma once

#include <cstdint>
#include <vector>

#include "dafast/cubic.h"
#include "dafast/linear.h"

namespace dafast {

// Target pixel t is the sum over k < count[t] of weights[at(t, k)] * source[first[t] + k].
struct TapTable {
  int32_t* first;
  int32_t* count;
  float* weights;
  int64_t most;    // capacity: weights of a target
  int64_t stride;  // from one target's weights to the next's
  int64_t step;    // from one weight to the next

  DAFAST_HOST_DEVICE int64_t at(int64_t target, int64_t k) const {
    return target * stride + k * step;
  }

  // 32-bit words of a table.
  static int64_t words(int64_t targets, int64_t most) { return targets * (2 + most); }

  // The weights of a target are contiguous.
  static TapTable along(int32_t* words, int64_t targets, int64_t most) {
    return {words, words + targets, reinterpret_cast<float*>(words + 2 * targets), most, most, 1};
  }

  // The first weights of all targets are contiguous, then the second, and so on: for a thread per
  // target.
  static TapTable across(int32_t* words, int64_t targets, int64_t most) {
    return {words, words + targets, reinterpret_cast<float*>(words + 2 * targets), most, 1,
            targets};
  }
};

// Target pixel `index` of an axis into row `row` of a table.
DAFAST_HOST_DEVICE inline void fill_taps(const LinearAxis& axis, int64_t index,
                                         const TapTable& table, int64_t row) {
  const LinearTaps taps = linear_taps(axis, index);
  table.first[row] = static_cast<int32_t>(taps.first);
  table.count[row] = taps.count;
  for (int k = 0; k < taps.count; ++k) table.weights[table.at(row, k)] = taps.weight(k);
}

// For the backward, which gathers the gradient of source pixel `index` from target pixels. Targets
// without weight at either end are left out, so that their NaN does not spread.
DAFAST_HOST_DEVICE inline void fill_users(const LinearAxis& axis, int64_t index,
                                          const TapTable& table, int64_t row) {
  int64_t first, last;
  linear_users(axis, index, &first, &last);
  int32_t count = 0;
  int32_t used = 0;
  for (int64_t target = first; target < last; ++target) {
    const float weight = weight_of(linear_taps(axis, target), index);
    if (count == 0 && weight == 0.0f) continue;
    if (count == 0) first = target;
    table.weights[table.at(row, count++)] = weight;
    if (weight != 0.0f) used = count;
  }
  table.first[row] = static_cast<int32_t>(first);
  table.count[row] = used;
}

// A table in host memory.
class HostTaps {
 public:
  HostTaps(int64_t targets, int64_t most)
      : words_(static_cast<size_t>(TapTable::words(targets, most))),
        targets_(targets),
        table_(TapTable::along(words_.data(), targets, most)) {}

  HostTaps(const HostTaps&) = delete;
  HostTaps& operator=(const HostTaps&) = delete;

  const TapTable& table() const { return table_; }
  int64_t targets() const { return targets_; }

 private:
  std::vector<int32_t> words_;
  int64_t targets_;
  TapTable table_;
};

// Taps at the border are clamped: the weights of several taps add up in one pixel.
inline void fill_cubic(int64_t source, int64_t target, int64_t index, const TapTable& table,
                       int64_t row) {
  const CubicTaps taps = cubic_taps(index, source, target);
  const int64_t first = clamp_index(taps.first, source);
  float* weights = table.weights + row * table.most;
  for (int k = 0; k < table.most; ++k) weights[k] = 0.0f;
  for (int k = 0; k < 4; ++k) weights[clamp_index(taps.first + k, source) - first] += taps.weights[k];
  table.first[row] = static_cast<int32_t>(first);
  table.count[row] = static_cast<int32_t>(clamp_index(taps.first + 3, source) - first + 1);
}

}  // namespace dafast
