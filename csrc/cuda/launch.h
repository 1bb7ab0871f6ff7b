// Launches and 16-byte accesses for the .cu files, without torch headers.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "dafast/images.h"

namespace dafast::cuda {

// A block is a warp of items by 8 rows. Blocks stride over rows and planes beyond the limits of the
// grid.
constexpr int kWidth = 32, kHeight = 8;

inline dim3 grid_of(int64_t items, int64_t rows, int64_t planes) {
  const auto blocks = [](int64_t size, int64_t block, int64_t limit) {
    return static_cast<unsigned>(std::min((size + block - 1) / block, limit));
  };
  return dim3(blocks(items, kWidth, 2147483647), blocks(rows, kHeight, 65535),
              blocks(planes, 1, 65535));
}

// Returns the cudaError_t of the launch.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream,
           Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (error != cudaSuccess) cudaGetLastError();  // clears the error, which is returned
  return error;
}

// The shared memory whose size the launch gives, from a multiple of 16 bytes on.
#if defined(__CUDACC__)
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
#else
unsigned char* dynamic_shared();  // of whoever runs the kernels on the host
#endif

// Whether runs of a pack's length along the columns (or the channels) are contiguous and start at
// multiples of 16 bytes everywhere in the view.
template <typename T>
bool packable(const View& view, bool channels) {
  constexpr int64_t size = Pack<T>::size;
  const int64_t other = channels ? view.stride_x : view.stride_c;
  return aligned(view.data) && (channels ? view.stride_c : view.stride_x) == 1 &&
         other % size == 0 && view.stride_y % size == 0 && view.stride_n % size == 0;
}

// Packs of one thread, in shared memory: a loop that fills them element by element is not unrolled
// into many registers. Other threads do not read them, so there is no barrier.
template <typename T, int kPacks = 1>
__device__ inline Pack<T>* own_packs() {
  __shared__ Pack<T> packs[kPacks * kWidth * kHeight];
  return packs + (threadIdx.y * kWidth + threadIdx.x) * kPacks;
}

template <typename T>
__device__ inline void store_pack(T* out, int64_t stride, int count, const Pack<T>& pack,
                                  bool whole) {
  if (whole && count == Pack<T>::size) {
    *reinterpret_cast<Pack<T>*>(out) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T>::size; ++i) {
      if (i < count) out[i * stride] = pack.values[i];
    }
  }
}

template <typename T>
__device__ inline Pack<T> rounded(const float* values) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) pack.values[i] = from_float<T>(values[i]);
  return pack;
}

template <typename T>
__device__ inline Pack<T> load_pack(const T* in, int64_t stride, int count, bool whole) {
  if (whole && count == Pack<T>::size) return *reinterpret_cast<const Pack<T>*>(in);
  Pack<T> pack = {};
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) {
    if (i < count) pack.values[i] = in[i * stride];
  }
  return pack;
}

// a / b for non-negative numbers; in 32 bits if both fit, which takes far fewer instructions.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// The pack of a row that a thread computes: columns of one channel, or channels of one pixel.
struct Item {
  int64_t column, channel;
  int count;  // elements, 0 beyond the row's end
};

inline int64_t items_of(const View& view, int size, bool channels) {
  return channels ? view.width * ((view.channels + size - 1) / size)
                  : (view.width + size - 1) / size;
}

template <bool kChannels>
__device__ inline Item item_of(const View& view, int size) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWidth + threadIdx.x;
  Item item = {index * size, 0, 0};
  if (kChannels) {
    const int64_t packs = (view.channels + size - 1) / size;
    item.column = quotient(index, packs);
    item.channel = (index - item.column * packs) * size;
    if (item.column >= view.width) return item;
  }
  const int64_t left = kChannels ? view.channels - item.channel : view.width - item.column;
  item.count = left < 0 ? 0 : static_cast<int>(left < size ? left : size);
  return item;
}

// Calls body with a value of the type of `dtype`; returns its error.
template <typename Body>
int with_type(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float16) return body(float16{});
  if (dtype == Dtype::bfloat16) return body(bfloat16{});
  return body(float{});
}

// Whether the channels of a pixel are contiguous; all other views are processed by columns.
inline bool is_channels_last(const View& view) {
  return view.channels > 1 && view.stride_c == 1;
}

}  // namespace dafast::cuda
