// Work in pieces that threads take as they come: a thread that shares its core takes fewer of them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dafast::cpu {

class Pieces {
 public:
  explicit Pieces(int64_t count) : count_(count) {}

  // Takes the next piece; false if all are taken.
  bool take(int64_t& index) {
    index = next_.fetch_add(1, std::memory_order_relaxed);
    return index < count_;
  }

 private:
  std::atomic<int64_t> next_{0};
  int64_t count_;
};

// Calls body(pieces) on every thread of PyTorch. The body takes pieces until there are none; its
// results must not depend on which thread computes a piece.
template <typename Body>
void for_pieces(int64_t count, const Body& body) {
  if (count <= 0) return;
  Pieces pieces(count);
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { body(pieces); });
}

}  // namespace dafast::cpu
