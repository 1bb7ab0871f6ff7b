// The part of CUDA that csrc/cuda/*.cu uses, on the host: g++ compiles the kernels, and they run
// cluster after cluster (block after block without clusters), with a fiber for each thread. Every
// block of a cluster has its own dynamic shared memory. Tests find wrong values here, accesses out of
// bounds (with -fsanitize=address), barriers that not all threads reach, and results that depend on
// the order of the threads.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
using cudaStream_t = void*;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline dim3 gridDim, blockDim, blockIdx;

namespace shim {

// What a fiber waits for.
enum class State { ready, block_barrier, cluster_barrier, done };

// Makes a fiber's threadIdx look like a variable.
struct Fiber {
  ucontext_t context;
  dim3 index;
  size_t block = 0;  // in the cluster
  State state = State::ready;
  std::unique_ptr<char[]> stack;
};

constexpr size_t kStack = 64 * 1024;
inline std::vector<Fiber> fibers;
inline size_t current = 0;
inline ucontext_t scheduler;
inline std::function<void()> body;

// The blocks of the cluster that runs: their indices, and their dynamic shared memory, of exactly the
// requested size.
inline std::vector<dim3> blocks;
inline std::vector<std::unique_ptr<unsigned char[]>> arenas;
inline size_t arena_size = 0;

// The order in which threads run between two barriers: 0 by their index, 1 the reverse, else random
// with this seed. Correct kernels do not depend on it.
inline unsigned order = 0;

// What the device answers.
inline int max_shared = 232448;
inline int max_cluster = 16;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "%s\n", message);
  std::abort();
}

inline void enter() {
  body();
  fibers[current].state = State::done;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void wait(State barrier) {
  fibers[current].state = barrier;
  swapcontext(&fibers[current].context, &scheduler);
}

inline bool all(size_t first, size_t last, State state) {
  return std::all_of(fibers.begin() + first, fibers.begin() + last,
                     [&](const Fiber& fiber) { return fiber.state == state; });
}

// Opens the barriers that all their threads have reached. Returns whether there is one.
inline bool open_barriers(size_t threads) {
  const auto open = [](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) fibers[i].state = State::ready;
  };
  if (all(0, fibers.size(), State::cluster_barrier)) {
    open(0, fibers.size());
    return true;
  }
  bool opened = false;
  for (size_t i = 0; i < fibers.size(); i += threads) {
    if (all(i, i + threads, State::block_barrier)) {
      open(i, i + threads);
      opened = true;
    }
  }
  return opened;
}

// Runs all threads of a cluster in turn, each up to its next barrier.
inline void run_cluster() {
  const size_t threads = static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z;
  fibers.resize(threads * blocks.size());
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    const size_t thread = i % threads;
    fiber.state = State::ready;
    fiber.block = i / threads;
    fiber.index = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y,
                       thread / blockDim.x / blockDim.y);
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<size_t> turns(fibers.size());
  std::iota(turns.begin(), turns.end(), size_t{0});
  std::mt19937 random(order);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  do {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    for (const size_t turn : turns) {
      if (fibers[turn].state != State::ready) continue;
      current = turn;
      blockIdx = blocks[fibers[turn].block];
      swapcontext(&scheduler, &fibers[turn].context);
    }
  } while (open_barriers(threads));
  if (!all(0, fibers.size(), State::done)) fail("a barrier that not all threads reach");
}

}  // namespace shim

#define threadIdx (shim::fibers[shim::current].index)

inline void __syncthreads() { shim::wait(shim::State::block_barrier); }

// One thread runs at a time.
inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
  const uint32_t before = *address;
  *address += value;
  return before;
}
inline void __threadfence() {}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

namespace dafast::cuda {
inline unsigned char* dynamic_shared() {
  return shim::arenas[shim::fibers[shim::current].block].get();
}
}  // namespace dafast::cuda

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  std::memset(to, value, size);
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = shim::max_shared;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int* active, const void*,
                                                  const cudaLaunchConfig_t* config) {
  *active = static_cast<int>(config->attrs->val.clusterDim.x) <= shim::max_cluster;
  return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647 || grid.y > 65535 ||
      grid.z > 65535 || threads == 0 || threads > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  unsigned size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) size *= config->attrs[i].val.clusterDim.x;
  if (size == 0 || grid.x % size != 0) return cudaErrorInvalidConfiguration;
  gridDim = grid;
  blockDim = block;
  shim::body = [&] { kernel(arguments...); };
  shim::blocks.resize(size);
  shim::arenas.resize(size);
  shim::arena_size = config->dynamicSmemBytes;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += size) {
        for (unsigned i = 0; i < size; ++i) {
          shim::blocks[i] = dim3(x + i, y, z);
          shim::arenas[i].reset(new unsigned char[shim::arena_size]);
          std::memset(shim::arenas[i].get(), 0x7f, shim::arena_size);  // no kernel may use it
        }
        shim::run_cluster();
      }
    }
  }
  return cudaSuccess;
}
