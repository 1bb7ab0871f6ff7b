// Maps pixels of a padded image to pixels of the image, and back.
#pragma once

#include <cstdint>

#include "dafast/macros.h"

namespace dafast {

enum class Padding { constant, replicate, reflect };

// The pixel of the image that is shown at `index`, which can be outside of it; -1 for the constant.
DAFAST_HOST_DEVICE inline int64_t padded_source(Padding mode, int64_t index, int64_t size) {
  if (index >= 0 && index < size) return index;
  if (mode == Padding::constant) return -1;
  if (mode == Padding::replicate) return index < 0 ? 0 : size - 1;
  return index < 0 ? -index : 2 * (size - 1) - index;
}

// The pixels of the padded image that show one pixel of the image: a run that starts at `own`, or
// `own` and up to two mirrored pixels.
struct PaddedUsers {
  int64_t own, second, third;
  int64_t count;
  bool run;

  DAFAST_HOST_DEVICE int64_t at(int64_t k) const {
    return run ? own + k : (k == 0 ? own : (k == 1 ? second : third));
  }
};

DAFAST_HOST_DEVICE inline PaddedUsers padded_users(Padding mode, int64_t index, int64_t size,
                                                   int64_t before, int64_t padded) {
  const int64_t own = index + before;
  if (mode != Padding::reflect) {
    const bool replicate = mode == Padding::replicate;
    int64_t first = replicate && index == 0 ? 0 : own;
    int64_t last = replicate && index == size - 1 ? padded : own + 1;
    first = first < 0 ? 0 : first;
    last = last > padded ? padded : last;
    return {first, 0, 0, last > first ? last - first : 0, true};
  }
  const int64_t low = before - index, high = 2 * (size - 1) - index + before;
  const bool has_own = own >= 0 && own < padded;
  const bool has_low = index > 0 && low >= 0 && low < padded;
  const bool has_high = index < size - 1 && high >= 0 && high < padded;
  PaddedUsers users = {own, low, high, has_own + has_low + has_high, false};
  if (!has_low) users.second = high;
  if (!has_own) users.own = users.second, users.second = high;
  return users;
}

}  // namespace dafast
