// Resizes predictions without their padding to the sizes of the photos. One kernel writes float32.
// For 16 bits, one kernel finds the range of each resized map, and a second resizes again and
// writes.
#include "dafast/quantise.h"
#include "launch.h"

namespace dafast::cuda {
namespace {

constexpr int kMaps = 64;    // of one launch, passed as a kernel parameter
constexpr int kBlocks = 64;  // that find the range of a map
constexpr int kThreads = 256;

struct Maps {
  Map maps[kMaps];
};

// The strides of the predictions, and how they are resized.
struct Layout {
  int64_t stride_y, stride_x;
  bool align_corners;

  __device__ LinearTaps taps(int64_t source, int64_t target, int64_t index) const {
    return linear_taps(linear_axis(source, target, align_corners, false), index);
  }
};

// A pixel of the resized map; fmaf fixes the rounding, so that both kernels compute the same value.
template <typename T>
__device__ inline float sample(const Map& map, const Layout& layout, const LinearTaps& rows,
                               int64_t x) {
  const LinearTaps columns = layout.taps(map.width, map.target_width, x);
  float sum = 0.0f;
  for (int j = 0; j < rows.count; ++j) {
    const T* row = static_cast<const T*>(map.source) + (rows.first + j) * layout.stride_y;
    float line = 0.0f;
    for (int k = 0; k < columns.count; ++k) {
      line = fmaf(columns.weight(k), to_float(row[(columns.first + k) * layout.stride_x]), line);
    }
    sum = fmaf(rows.weight(j), line, sum);
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(256, 3) postprocess_range_kernel(const __grid_constant__ Maps maps,
                                                                Layout layout, Range* ranges) {
  __shared__ Range shared[kThreads];
  const Map& map = maps.maps[blockIdx.y];
  Range range;
  for (int64_t y = blockIdx.x; y < map.target_height; y += gridDim.x) {
    const LinearTaps rows = layout.taps(map.height, map.target_height, y);
    for (int64_t x = threadIdx.x; x < map.target_width; x += kThreads) {
      range.add(sample<T>(map, layout, rows, x));
    }
  }
  shared[threadIdx.x] = range;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x].add(shared[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) ranges[blockIdx.y * kBlocks + blockIdx.x] = shared[0];
}

// Out is float; or uint16_t, and `ranges` holds kBlocks partial ranges for each map.
template <typename T, typename Out>
__global__ void __launch_bounds__(256, 3) postprocess_kernel(const __grid_constant__ Maps maps,
                                                          Layout layout, const Range* ranges) {
  constexpr int kPack = Pack<Out>::size;
  constexpr bool kQuantise = sizeof(Out) == 2;
  const Map& map = maps.maps[blockIdx.z];
  Range range;
  if (kQuantise) {
    for (int i = 0; i < kBlocks; ++i) range.add(ranges[blockIdx.z * kBlocks + i]);
  }
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kWidth + threadIdx.x) * kPack;
  if (column >= map.target_width) return;
  const int count = static_cast<int>(min(map.target_width - column, int64_t{kPack}));
  const bool whole =
      map.target_width % kPack == 0 && reinterpret_cast<uintptr_t>(map.target) % 16 == 0;
  for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y;
       y < map.target_height; y += static_cast<int64_t>(gridDim.y) * kHeight) {
    const LinearTaps rows = layout.taps(map.height, map.target_height, y);
    Pack<Out>* pack = own_packs<Out>();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const float value = sample<T>(map, layout, rows, column + i);
      if constexpr (kQuantise) {
        pack->values[i] = range.quantise(value);
      } else {
        pack->values[i] = value;
      }
    }
    store_pack(static_cast<Out*>(map.target) + y * map.target_width + column, 1, count, *pack,
               whole);
  }
}

template <typename T>
int run(const Postprocess& call, Range* ranges, void* stream) {
  const Layout layout = {call.stride_y, call.stride_x, call.align_corners};
  const bool quantise = call.target_dtype == Dtype::uint16;
  for (int64_t begin = 0; begin < call.count; begin += kMaps) {
    const int64_t count = std::min<int64_t>(kMaps, call.count - begin);
    Maps maps = {};
    std::copy(call.maps + begin, call.maps + begin + count, maps.maps);
    int64_t height = 0, width = 0;
    for (int64_t i = 0; i < count; ++i) {
      height = std::max<int64_t>(height, maps.maps[i].target_height);
      width = std::max<int64_t>(width, maps.maps[i].target_width);
    }
    const int64_t pack = quantise ? Pack<uint16_t>::size : Pack<float>::size;
    const dim3 grid = grid_of((width + pack - 1) / pack, height, count);
    const dim3 block(kWidth, kHeight);
    Range* own = ranges == nullptr ? nullptr : ranges + begin * kBlocks;
    int error;
    if (quantise) {
      error = launch(postprocess_range_kernel<T>, dim3(kBlocks, static_cast<unsigned>(count)),
                     dim3(kThreads), stream, maps, layout, own);
      if (error != cudaSuccess) return error;
      error = launch(postprocess_kernel<T, uint16_t>, grid, block, stream, maps, layout, own);
    } else {
      error = launch(postprocess_kernel<T, float>, grid, block, stream, maps, layout, own);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int64_t postprocess_workspace(const Postprocess& call) {
  return call.target_dtype == Dtype::uint16 ? call.count * kBlocks * (sizeof(Range) / 4) : 0;
}

int postprocess(const Postprocess& call, void* workspace, void* stream) {
  return with_type(call.dtype, [&](auto type) {
    return run<decltype(type)>(call, static_cast<Range*>(workspace), stream);
  });
}

}  // namespace dafast::cuda
