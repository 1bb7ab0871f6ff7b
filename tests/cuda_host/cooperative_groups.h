// The cluster of cooperative_groups, on the host.
#pragma once

#include <cstddef>

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  unsigned block_rank() const {
    return static_cast<unsigned>(shim::fibers[shim::current].block);
  }
  unsigned num_blocks() const { return static_cast<unsigned>(shim::blocks.size()); }
  void sync() const { shim::wait(shim::State::cluster_barrier); }

  // The same place in the shared memory of another block.
  template <typename T>
  T* map_shared_rank(T* address, int rank) const {
    unsigned char* const own = shim::arenas[block_rank()].get();
    const auto at = reinterpret_cast<unsigned char*>(address) - own;
    if (at < 0 || at + sizeof(T) > shim::arena_size ||
        static_cast<size_t>(rank) >= shim::blocks.size()) {
      shim::fail("map_shared_rank: outside of the shared memory of the cluster");
    }
    return reinterpret_cast<T*>(shim::arenas[rank].get() + at);
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
