// Padding and cropping, and their backward, which gathers.
#include "launch.h"

namespace dafast::cuda {
namespace {

template <typename T>
__device__ inline void fill(Pack<T>* pack, T value) {
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) pack->values[i] = value;
}

template <typename T, bool kChannels>
__global__ void __launch_bounds__(256, 3) pad_kernel(View source, View target, Padding mode,
                                                  int64_t left, int64_t top, T value,
                                                  bool whole_loads, bool whole_stores) {
  constexpr int kPack = Pack<T>::size;
  const Item item = item_of<kChannels>(target, kPack);
  if (item.count == 0) return;
  const int64_t per_image = kChannels ? 1 : target.channels;
  // By columns, a pack inside of the image is copied whole if it starts at a multiple of 16 bytes.
  const int64_t first = item.column - left;
  const bool inside = first >= 0 && first + kPack <= source.width && first % kPack == 0;
  for (int64_t plane = blockIdx.z; plane < target.batch * per_image; plane += gridDim.z) {
    const int64_t image = quotient(plane, per_image);
    const int64_t channel = kChannels ? item.channel : plane - image * per_image;
    const T* from = static_cast<const T*>(source.data) + source.plane(image, channel);
    T* to = static_cast<T*>(target.data) + target.plane(image, channel) +
            item.column * target.stride_x;
    for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
         y += static_cast<int64_t>(gridDim.y) * kHeight) {
      const int64_t row = padded_source(mode, y - top, source.height);
      const T* line = from + row * source.stride_y;
      Pack<T>* pack = own_packs<T>();
      if (row >= 0 && kChannels) {
        const int64_t column = padded_source(mode, first, source.width);
        if (column >= 0) {
          *pack = load_pack(line + column * source.stride_x, source.stride_c, item.count,
                            whole_loads);
        } else {
          fill(pack, value);
        }
      } else if (row >= 0 && inside && whole_loads) {
        *pack = *reinterpret_cast<const Pack<T>*>(line + first);
      } else if (row >= 0) {
#pragma unroll 1
        for (int i = 0; i < item.count; ++i) {
          const int64_t column = padded_source(mode, first + i, source.width);
          pack->values[i] = column < 0 ? value : line[column * source.stride_x];
        }
      } else {
        fill(pack, value);
      }
      store_pack(to + y * target.stride_y, kChannels ? target.stride_c : target.stride_x,
                 item.count, *pack, whole_stores);
    }
  }
}

template <typename T, bool kChannels>
__global__ void __launch_bounds__(256, 3) pad_backward_kernel(View source, View target, Padding mode,
                                                           int64_t left, int64_t top,
                                                           bool whole_loads, bool whole_stores) {
  constexpr int kPack = Pack<T>::size;
  const Item item = item_of<kChannels>(target, kPack);
  if (item.count == 0) return;
  const int64_t per_image = kChannels ? 1 : target.channels;
  for (int64_t plane = blockIdx.z; plane < target.batch * per_image; plane += gridDim.z) {
    const int64_t image = quotient(plane, per_image);
    const int64_t channel = kChannels ? item.channel : plane - image * per_image;
    const T* from = static_cast<const T*>(source.data) + source.plane(image, channel);
    T* to = static_cast<T*>(target.data) + target.plane(image, channel) +
            item.column * target.stride_x;
    for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
         y += static_cast<int64_t>(gridDim.y) * kHeight) {
      const PaddedUsers rows = padded_users(mode, y, target.height, top, source.height);
      T* out = to + y * target.stride_y;
      if (kChannels) {
        const PaddedUsers columns =
            padded_users(mode, item.column, target.width, left, source.width);
        float sums[kPack] = {};
        for (int64_t j = 0; j < rows.count; ++j) {
          const T* line = from + rows.at(j) * source.stride_y;
          for (int64_t k = 0; k < columns.count; ++k) {
            const Pack<T> pack = load_pack(line + columns.at(k) * source.stride_x, source.stride_c,
                                           item.count, whole_loads);
#pragma unroll
            for (int i = 0; i < kPack; ++i) sums[i] += to_float(pack.values[i]);
          }
        }
        store_pack(out, target.stride_c, item.count, rounded<T>(sums), whole_stores);
      } else {
        Pack<T>* pack = own_packs<T>();
#pragma unroll 1
        for (int i = 0; i < item.count; ++i) {
          const PaddedUsers columns =
              padded_users(mode, item.column + i, target.width, left, source.width);
          float sum = 0.0f;
          for (int64_t j = 0; j < rows.count; ++j) {
            const T* line = from + rows.at(j) * source.stride_y;
            for (int64_t k = 0; k < columns.count; ++k) {
              sum += to_float(line[columns.at(k) * source.stride_x]);
            }
          }
          pack->values[i] = from_float<T>(sum);
        }
        store_pack(out, target.stride_x, item.count, *pack, whole_stores);
      }
    }
  }
}

template <typename T, bool kChannels>
int run(const Pad& call, bool backward, void* stream) {
  const View& target = call.target;
  const dim3 block(kWidth, kHeight);
  const dim3 grid = grid_of(items_of(target, Pack<T>::size, kChannels), target.height,
                            target.batch * (kChannels ? 1 : target.channels));
  const bool loads = packable<T>(call.source, kChannels), stores = packable<T>(target, kChannels);
  if (backward) {
    return launch(pad_backward_kernel<T, kChannels>, grid, block, stream, call.source, target,
                  call.mode, call.left, call.top, loads, stores);
  }
  return launch(pad_kernel<T, kChannels>, grid, block, stream, call.source, target, call.mode,
                call.left, call.top, from_float<T>(call.value), loads, stores);
}

int run(const Pad& call, bool backward, void* stream) {
  return with_type(call.source.dtype, [&](auto type) {
    using T = decltype(type);
    return is_channels_last(call.target) ? run<T, true>(call, backward, stream)
                                         : run<T, false>(call, backward, stream);
  });
}

}  // namespace

int pad(const Pad& call, void* stream) { return run(call, false, stream); }

int pad_backward(const Pad& call, void* stream) { return run(call, true, stream); }

}  // namespace dafast::cuda
