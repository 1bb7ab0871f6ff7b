// Work in pieces. Each thread takes the next piece when it is free, so a thread that shares its
// core takes fewer.
// Results must not depend on which thread computes a piece, nor on where ranges begin and end.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "threads.h"

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

// The threads that PyTorch would use for up to `most` pieces.
inline int64_t threads_for(int64_t most) {
  return std::min<int64_t>(most, torch::stable::get_num_threads());
}

// Calls body(pieces) on every thread. The body takes pieces until none is left.
template <typename Body>
void for_pieces(int64_t count, const Body& body) {
  if (count <= 0) return;
  Pieces pieces(count);
  on_threads(threads_for(count), [&] { body(pieces); });
}

// Ranges of [0, count) that begin at multiples of `unit`. They have up to `most` elements, and fewer
// towards the end, so that all threads finish at about the same time.
class Ranges {
 public:
  Ranges(int64_t count, int64_t unit, int64_t most)
      : count_(count), unit_(unit), most_(most), share_(2 * torch::stable::get_num_threads()) {}

  // Takes the next range; false if all are taken.
  bool take(int64_t& begin, int64_t& end) {
    begin = next_.load(std::memory_order_relaxed);
    do {
      if (begin >= count_) return false;
      const int64_t size = std::min(most_, (count_ - begin) / share_) / unit_ * unit_;
      end = std::min(count_, begin + std::max(size, unit_));
    } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return true;
  }

 private:
  std::atomic<int64_t> next_{0};
  int64_t count_, unit_, most_, share_;
};

// Calls body(ranges) on every thread. The body takes ranges until none is left.
template <typename Body>
void for_ranges(int64_t count, int64_t unit, int64_t most, const Body& body) {
  if (count <= 0) return;
  Ranges ranges(count, unit, most);
  on_threads(threads_for((count + unit - 1) / unit), [&] { body(ranges); });
}

// Pieces in groups, each with a preparation that all of its pieces need. Threads begin at different
// groups, and continue with the rest of the others.
class Groups {
 public:
  explicit Groups(std::vector<int64_t> sizes)
      : sizes_(std::move(sizes)),
        next_(sizes_.size()),
        threads_(std::max<int64_t>(1, torch::stable::get_num_threads())) {}

  // The pieces as one thread takes them.
  class Worker {
   public:
    explicit Worker(Groups& groups) : groups_(groups) {
      const int64_t count = groups.count(), number = groups.workers_.fetch_add(1);
      first_ = number % groups.threads_ * count / groups.threads_;
    }

    // Takes the next piece of its group, or of another one; false if all are taken.
    bool take(int64_t& group, int64_t& piece) {
      for (; passed_ < groups_.count(); ++passed_) {
        group = (first_ + passed_) % groups_.count();
        piece = groups_.next_[group].fetch_add(1, std::memory_order_relaxed);
        if (piece < groups_.sizes_[group]) return true;
      }
      return false;
    }

   private:
    Groups& groups_;
    int64_t first_, passed_ = 0;
  };

  int64_t count() const { return static_cast<int64_t>(sizes_.size()); }

 private:
  std::vector<int64_t> sizes_;
  std::vector<std::atomic<int64_t>> next_;
  int64_t threads_;
  std::atomic<int64_t> workers_{0};
};

// Calls body(worker) on up to `most` threads; `sizes` has the number of pieces of each group.
template <typename Body>
void for_groups(const std::vector<int64_t>& sizes, int64_t most, const Body& body) {
  Groups groups(sizes);
  on_threads(threads_for(most), [&] {
    Groups::Worker worker(groups);
    body(worker);
  });
}

}  // namespace dafast::cpu
