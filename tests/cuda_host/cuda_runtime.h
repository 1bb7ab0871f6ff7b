// The part of CUDA that csrc/cuda/*.cu uses, on the host: g++ compiles the kernels, and they run block
// after block, with a fiber for each thread. Tests find wrong values here, accesses out of bounds
// (with -fsanitize=address), and barriers that not all threads reach.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
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
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline dim3 gridDim, blockDim, blockIdx;

namespace shim {

// Makes a fiber's threadIdx look like a variable.
struct Fiber {
  ucontext_t context;
  dim3 index;
  bool done = false;
  std::unique_ptr<char[]> stack;
};

constexpr size_t kStack = 64 * 1024;
inline std::vector<Fiber> fibers;
inline size_t current = 0;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void enter() {
  body();
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

// Runs all threads of a block in turn, each up to its next barrier.
inline void run_block() {
  fibers.resize(static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z);
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    fiber.done = false;
    fiber.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  size_t done = 0;
  while (done == 0) {
    for (current = 0; current < fibers.size(); ++current) {
      swapcontext(&scheduler, &fibers[current].context);
      done += fibers[current].done;
    }
  }
  if (done != fibers.size()) {
    std::fprintf(stderr, "a barrier that %zu of %zu threads do not reach\n", done, fibers.size());
    std::abort();
  }
}

}  // namespace shim

#define threadIdx (shim::fibers[shim::current].index)

inline void __syncthreads() {
  swapcontext(&shim::fibers[shim::current].context, &shim::scheduler);
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
  gridDim = grid;
  blockDim = block;
  shim::body = [&] { kernel(arguments...); };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        shim::run_block();
      }
    }
  }
  return cudaSuccess;
}
