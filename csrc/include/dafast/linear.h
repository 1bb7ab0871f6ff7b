// Weights of a bilinear resize along one axis, those of torch.nn.functional.interpolate.
#pragma once

#include <cmath>
#include <cstdint>

#include "dafast/macros.h"

namespace dafast {

// Every variant is a triangle of half-width `support` around the position of the target pixel in
// the source, sampled at the centres of the source pixels and normalised over the pixels that
// exist. Without antialiasing the half-width is 1, so the two neighbours have the weights 1 - t and
// t. Positions are in double: in float32 the positions in a large photo have too few digits.
struct LinearAxis {
  int64_t source;
  int64_t target;
  double scale;
  double offset;
  double support;

  DAFAST_HOST_DEVICE double place(int64_t index) const {
    return scale * static_cast<double>(index) + offset;
  }
};

DAFAST_HOST_DEVICE inline LinearAxis linear_axis(int64_t source, int64_t target,
                                                 bool align_corners, bool antialias) {
  LinearAxis axis{source, target, 0.0, 0.0, 1.0};
  if (!align_corners) {
    axis.scale = static_cast<double>(source) / static_cast<double>(target);
  } else if (target > 1) {
    axis.scale = static_cast<double>(source - 1) / static_cast<double>(target - 1);
  }
  // With antialiasing, PyTorch uses half-pixel positions and ignores align_corners.
  axis.offset = align_corners && !antialias ? 0.5 : 0.5 * axis.scale;
  if (antialias && axis.scale > 1.0) axis.support = axis.scale;
  return axis;
}

// The source pixels first, first + 1, ... of one target pixel.
struct LinearTaps {
  int64_t first;
  int count;
  float start;   // from the target's position to the centre of pixel `first`
  float slope;   // 1 / support
  float factor;  // makes the weights sum to 1

  DAFAST_HOST_DEVICE float weight(int k) const {
    return fmaxf(0.0f, 1.0f - fabsf(start + static_cast<float>(k)) * slope) * factor;
  }
};

DAFAST_HOST_DEVICE inline LinearTaps linear_taps(const LinearAxis& axis, int64_t index) {
  const double place = axis.place(index);
  int64_t first = static_cast<int64_t>(place - axis.support + 0.5);
  int64_t last = static_cast<int64_t>(place + axis.support + 0.5);
  first = first < 0 ? 0 : (first >= axis.source ? axis.source - 1 : first);
  last = last <= first ? first + 1 : (last > axis.source ? axis.source : last);
  LinearTaps taps{first, static_cast<int>(last - first),
                  static_cast<float>(static_cast<double>(first) + 0.5 - place),
                  static_cast<float>(1.0 / axis.support), 1.0f};
  float total = 0.0f;
  for (int k = 0; k < taps.count; ++k) total += taps.weight(k);
  taps.factor = total > 0.0f ? 1.0f / total : 0.0f;
  return taps;
}

// The largest number of taps of a target pixel.
inline int64_t most_linear_taps(const LinearAxis& axis) {
  const int64_t most = static_cast<int64_t>(2.0 * axis.support) + 2;
  return most < axis.source ? most : axis.source;
}

// The inverse: the target pixels [first, last) in which a source pixel can have a weight.
DAFAST_HOST_DEVICE inline void linear_users(const LinearAxis& axis, int64_t index, int64_t* first,
                                            int64_t* last) {
  *first = 0;
  *last = axis.target;
  if (axis.scale == 0.0) return;
  const double centre = static_cast<double>(index) + 0.5 - axis.offset;
  const double low = floor((centre - axis.support) / axis.scale);
  const double high = ceil((centre + axis.support) / axis.scale) + 1.0;
  if (low > 0.0) *first = static_cast<int64_t>(low);
  if (high < static_cast<double>(axis.target)) *last = static_cast<int64_t>(high);
}

inline int64_t most_linear_users(const LinearAxis& axis) {
  if (axis.scale == 0.0) return axis.target;
  const double most = 2.0 * axis.support / axis.scale + 4.0;
  return most < static_cast<double>(axis.target) ? static_cast<int64_t>(most) : axis.target;
}

// Weight of source pixel `index` in a target pixel with these taps.
DAFAST_HOST_DEVICE inline float weight_of(const LinearTaps& taps, int64_t index) {
  const int64_t k = index - taps.first;
  return k < 0 || k >= taps.count ? 0.0f : taps.weight(static_cast<int>(k));
}

}  // namespace dafast
