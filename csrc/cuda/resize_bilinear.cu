// Bilinear resize and its backward. One kernel fills a table of taps for rows and columns, in
// double; the other gathers with it. A backward is the same gather with the transposed table.
#include "launch.h"

namespace dafast::cuda {
namespace {

__global__ void __launch_bounds__(256, 3) resize_bilinear_taps_kernel(
    LinearAxis y, LinearAxis x, TapTable rows, TapTable columns, int64_t height, int64_t width,
    bool backward) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (thread >= height + width) return;
  const bool is_row = thread < height;
  const LinearAxis axis = is_row ? y : x;
  const TapTable table = is_row ? rows : columns;
  const int64_t index = is_row ? thread : thread - height;
  if (backward) {
    fill_users(axis, index, table, index);
  } else {
    fill_taps(axis, index, table, index);
  }
}

template <typename T, bool kChannels>
__global__ void __launch_bounds__(256, 3) resize_bilinear_kernel(
    View source, View target, TapTable rows, TapTable columns, bool whole_loads,
    bool whole_stores) {
  constexpr int kPack = Pack<T>::size;
  const Item item = item_of<kChannels>(target, kPack);
  if (item.count == 0) return;
  const int64_t per_image = kChannels ? 1 : target.channels;
  for (int64_t plane = blockIdx.z; plane < target.batch * per_image; plane += gridDim.z) {
    const int64_t image = plane / per_image;
    const int64_t channel = kChannels ? item.channel : plane - image * per_image;
    const T* from = static_cast<const T*>(source.data) + source.plane(image, channel);
    T* to = static_cast<T*>(target.data) + target.plane(image, channel) +
            item.column * target.stride_x;
    for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
         y += static_cast<int64_t>(gridDim.y) * kHeight) {
      T* out = to + y * target.stride_y;
      if (kChannels) {
        const int64_t x = item.column;
        float sums[kPack] = {};
        for (int j = 0; j < rows.count[y]; ++j) {
          const float weight = rows.weights[y * rows.most + j];
          const T* row = from + (rows.first[y] + j) * source.stride_y;
          for (int k = 0; k < columns.count[x]; ++k) {
            const float both = weight * columns.weights[x * columns.most + k];
            const Pack<T> pack = load_pack(row + (columns.first[x] + k) * source.stride_x,
                                           source.stride_c, item.count, whole_loads);
#pragma unroll
            for (int i = 0; i < kPack; ++i) sums[i] += both * to_float(pack.values[i]);
          }
        }
        store_pack(out, target.stride_c, item.count, rounded<T>(sums), whole_stores);
      } else {
        Pack<T>* pack = own_packs<T>();
#pragma unroll 1
        for (int i = 0; i < item.count; ++i) {
          const int64_t x = item.column + i;
          const float* weights = columns.weights + x * columns.most;
          const T* pixels = from + rows.first[y] * source.stride_y +
                            columns.first[x] * source.stride_x;
          const int count = columns.count[x];
          float sum = 0.0f;
          for (int j = 0; j < rows.count[y]; ++j) {
            float line = 0.0f;
            for (int k = 0; k < count; ++k) {
              line += weights[k] * to_float(pixels[k * source.stride_x]);
            }
            sum += rows.weights[y * rows.most + j] * line;
            pixels += source.stride_y;
          }
          pack->values[i] = from_float<T>(sum);
        }
        store_pack(out, target.stride_x, item.count, *pack, whole_stores);
      }
    }
  }
}

template <typename T, bool kChannels>
int resample(const Resize& call, const TapTable& rows, const TapTable& columns, void* stream) {
  const View& target = call.target;
  const dim3 grid = grid_of(items_of(target, Pack<T>::size, kChannels), target.height,
                            target.batch * (kChannels ? 1 : target.channels));
  return launch(resize_bilinear_kernel<T, kChannels>, grid, dim3(kWidth, kHeight), stream,
                call.source, target, rows, columns, packable<T>(call.source, kChannels),
                packable<T>(target, kChannels));
}

}  // namespace

int64_t resize_bilinear_workspace(const Resize& call) {
  return TapTable::words(call.target.height, call.most(call.rows())) +
         TapTable::words(call.target.width, call.most(call.columns()));
}

int resize_bilinear(const Resize& call, void* workspace, void* stream) {
  const int64_t height = call.target.height, width = call.target.width;
  const LinearAxis y = call.rows(), x = call.columns();
  int32_t* words = static_cast<int32_t*>(workspace);
  const TapTable rows = TapTable::at(words, height, call.most(y));
  const TapTable columns =
      TapTable::at(words + TapTable::words(height, call.most(y)), width, call.most(x));
  const unsigned blocks = static_cast<unsigned>((height + width + 255) / 256);
  const int error = launch(resize_bilinear_taps_kernel, dim3(blocks), dim3(256), stream, y, x, rows,
                           columns, height, width, call.backward);
  if (error != cudaSuccess) return error;
  return with_type(call.source.dtype, [&](auto type) {
    using T = decltype(type);
    return is_channels_last(call.target) ? resample<T, true>(call, rows, columns, stream)
                                         : resample<T, false>(call, rows, columns, stream);
  });
}

}  // namespace dafast::cuda
