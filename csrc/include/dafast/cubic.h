// The cubic kernel of fit="official": OpenCV's INTER_CUBIC on floats.
#pragma once

#include <cmath>
#include <cstdint>

#include "dafast/macros.h"

namespace dafast {

// Four neighbouring source pixels first, first + 1, ... and their weights. `first` may lie outside
// the source: the caller clamps each index (border replicate).
struct CubicTaps {
  int64_t first;
  float weights[4];
};

// Taps of target pixel `index` when `source` pixels become `target` pixels, half-pixel centres.
// Computed in double: in float32 a coordinate of several thousand has too few digits for the
// weights, and the result is off by 3e-4.
DAFAST_HOST_DEVICE inline CubicTaps cubic_taps(int64_t index, int64_t source, int64_t target) {
  constexpr double a = -0.75;
  const double scale = static_cast<double>(source) / static_cast<double>(target);
  const double x = (static_cast<double>(index) + 0.5) * scale - 0.5;
  const double below = floor(x);
  const double t = x - below;   // distance to the second tap
  const double u = 1.0 - t;     // distance to the third
  const double w0 = ((a * (t + 1.0) - 5.0 * a) * (t + 1.0) + 8.0 * a) * (t + 1.0) - 4.0 * a;
  const double w1 = ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
  const double w2 = ((a + 2.0) * u - (a + 3.0)) * u * u + 1.0;
  CubicTaps taps;
  taps.first = static_cast<int64_t>(below) - 1;
  taps.weights[0] = static_cast<float>(w0);
  taps.weights[1] = static_cast<float>(w1);
  taps.weights[2] = static_cast<float>(w2);
  taps.weights[3] = static_cast<float>(1.0 - w0 - w1 - w2);
  return taps;
}

DAFAST_HOST_DEVICE inline int64_t clamp_index(int64_t index, int64_t size) {
  return index < 0 ? 0 : (index >= size ? size - 1 : index);
}

}  // namespace dafast
