// Scales the values of a map from its range to 16 bits, for saving.
#pragma once

#include <cmath>
#include <cstdint>

#include "dafast/macros.h"

namespace dafast {

struct Range {
  float least = INFINITY;
  float greatest = -INFINITY;

  DAFAST_HOST_DEVICE void add(float value) {
    least = fminf(least, value);
    greatest = fmaxf(greatest, value);
  }

  DAFAST_HOST_DEVICE void add(const Range& other) {
    least = fminf(least, other.least);
    greatest = fmaxf(greatest, other.greatest);
  }

  // 0 for the least value, 65535 for the greatest. All 0 if the map is flat, up to the rounding of
  // the resize.
  DAFAST_HOST_DEVICE uint16_t quantise(float value) const {
    const float width = greatest - least;
    const bool flat = width <= 1e-6f * fmaxf(fabsf(least), fabsf(greatest));
    const float share = flat ? 0.0f : (value - least) / width;
    return static_cast<uint16_t>(fminf(fmaxf(share, 0.0f), 1.0f) * 65535.0f + 0.5f);
  }
};

}  // namespace dafast
