// What the loss's kernels are given; see affine_invariant_loss.cpp.
#pragma once

#include <cstdint>

#include "dafast/numbers.h"

namespace dafast::cpu {

// Maps whose pixels lie side by side, at any distance from each other (in elements).
struct LossMaps {
  const void* values[2];  // prediction, target
  Dtype dtypes[2];
  const uint8_t* mask;     // valid pixels, or nullptr: all
  const uint8_t* regions;  // first of two regions, or nullptr: one
  int64_t strides[4];      // between maps: of the values, of the mask, of the regions
  int64_t maps, pixels;

  int region_count() const { return regions ? 2 : 1; }
};

// The median of one map's values in one region, and what the gradient needs to know of it.
struct Segment {
  int64_t valid;   // pixels
  int64_t below;   // of these, less than the median
  int64_t ties;    // of these, equal to it
  float median;
  double deviation;  // sum of |x - median|
};

// Sums over the pixels of a part of a map, by region; e = sign(p_hat - t_hat).
struct Sums {
  double loss[2];   // |p_hat - t_hat|
  double signs[2];  // e
  double along[2];  // e * p_hat
  int64_t area;     // pixels in the first region, valid or not
};

// Of a map's region: [0] [1] median and inverse scale of the prediction, [2] [3] of the target, then
// the factors in the gradient of a pixel of [4] sign(p_hat - t_hat), [5] p == median,
// [6] sign(p - median); [7] whether the prediction's scale was clamped.
constexpr int kCoefficients = 8;

// Histograms of 11 bits, of both regions and of all other pixels; four counters to a bin.
constexpr int kBins = 2048, kCopies = 4;
constexpr int kCounters = 3 * kBins * kCopies;

}  // namespace dafast::cpu
