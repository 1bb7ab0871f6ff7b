// Pieces of pieces.h on ATen's threads, for training: its small operations run on them too, and they
// spin for a while after each, in the way of any other threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "pieces.h"

namespace dafast::cpu {

// Calls body(pieces) on every thread, as `for_pieces`.
template <typename Body>
void for_aten_pieces(int64_t count, const Body& body) {
  if (count <= 0) return;
  Pieces pieces(count);
  torch::stable::parallel_for(0, threads_for(count), 1, [&](int64_t, int64_t) { body(pieces); });
}

// Calls body(ranges) on every thread, as `for_ranges`.
template <typename Body>
void for_aten_ranges(int64_t count, int64_t unit, int64_t most, const Body& body) {
  if (count <= 0) return;
  Ranges ranges(count, unit, most);
  torch::stable::parallel_for(0, threads_for((count + unit - 1) / unit), 1,
                              [&](int64_t, int64_t) { body(ranges); });
}

}  // namespace dafast::cpu
