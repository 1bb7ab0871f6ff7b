// Bilinear resize and its backward. For planes, the lanes of a warp compute neighbouring columns,
// each in several planes at once: they share the computation of the position, and their loads
// overlap. A kernel for two taps per axis computes the taps itself; for more taps, a first kernel
// fills a table. The backward is the same gather with the transposed table. For channels_last, a
// thread computes channels, 16 bytes at a time.
#include <type_traits>

#include "launch.h"

namespace dafast::cuda {
namespace {

constexpr int kPlanes = 4;  // that a thread computes at once

// Blocks on a multiprocessor. 64-bit offsets take twice the registers.
template <typename Index>
constexpr int kResident = sizeof(Index) == 4 ? 3 : 2;

// Columns of a thread, 4 bytes: the stores of a warp fill lines of 128 bytes.
template <typename T>
constexpr int kColumns = 4 / sizeof(T);

template <typename T>
struct alignas(4) Word {
  T values[kColumns<T>];
};

// A pixel of a plane, at an offset in bytes. Offsets nearly always fit in 32 bits; the load
// instruction then adds them to a pointer that all threads share.
template <typename T, typename Index>
__device__ inline const T& pixel_at(const T* plane, Index offset) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(plane) + offset);
}

// Where the columns of a thread are stored in a plane; `word`: as 4 bytes at once.
template <typename T, typename Index>
struct Place {
  Index offset;  // of its first column
  Index stride;  // from one column to the next
  int count;
  bool word;

  __device__ Place(const View& target, int64_t y, int64_t x, bool words)
      : offset(static_cast<Index>((y * target.stride_y + x * target.stride_x) * sizeof(T))),
        stride(static_cast<Index>(target.stride_x * sizeof(T))),
        count(static_cast<int>(min(target.width - x, int64_t{kColumns<T>}))),
        word(words && count == kColumns<T>) {}

  __device__ void store(T* plane, const float* values) const {
    char* to = reinterpret_cast<char*>(plane) + offset;
    if (word) {
      Word<T> packed;
#pragma unroll
      for (int i = 0; i < kColumns<T>; ++i) packed.values[i] = from_float<T>(values[i]);
      *reinterpret_cast<Word<T>*>(to) = packed;
    } else {
#pragma unroll
      for (int i = 0; i < kColumns<T>; ++i) {
        if (i < count) *reinterpret_cast<T*>(to + i * stride) = from_float<T>(values[i]);
      }
    }
  }
};

// Calls `make` with a number of planes as a constant, and pointers to the first of them. The number
// is kPlanes, 3 (a photo) or 1.
template <typename T, typename Make>
__device__ inline void each_planes(const View& source, const View& target, const Make& make) {
  for (int64_t image = 0; image < target.batch; ++image) {
    for (int64_t channel = int64_t{kPlanes} * blockIdx.z; channel < target.channels;
         channel += int64_t{kPlanes} * gridDim.z) {
      const T* from = static_cast<const T*>(source.data) + source.plane(image, channel);
      T* to = static_cast<T*>(target.data) + target.plane(image, channel);
      const int64_t left = target.channels - channel;
      if (left >= kPlanes) {
        make(std::integral_constant<int, kPlanes>(), from, to);
      } else if (left == 3) {
        make(std::integral_constant<int, 3>(), from, to);
      } else {
        for (int64_t p = 0; p < left; ++p) {
          make(std::integral_constant<int, 1>(), from + p * source.stride_c,
               to + p * target.stride_c);
        }
      }
    }
  }
}

// The two source pixels of a position along an axis, as offsets in bytes, and their weights.
template <typename Index>
struct Pair {
  Index near, far;
  float near_weight, far_weight;
};

template <typename Index>
__device__ inline Pair<Index> pair_of(LinearAxis axis, int64_t index, int64_t stride) {
  axis.support = 1.0;  // true for all callers; lets the compiler simplify
  const LinearTaps taps = linear_taps(axis, index);
  // Rounding can give three taps, with a weight of zero at one end.
  const int k = taps.count > 2 && taps.weight(0) == 0.0f ? 1 : 0;
  const Index near = static_cast<Index>((taps.first + k) * stride);
  // A single pixel is read twice with half the weight: a neighbour could be NaN, and 0 * NaN is
  // NaN.
  if (taps.count == 1) return {near, near, 0.5f * taps.weight(0), 0.5f * taps.weight(0)};
  return {near, near + static_cast<Index>(stride), taps.weight(k), taps.weight(k + 1)};
}

template <typename T, typename Index>
__global__ void __launch_bounds__(256, kResident<Index>) resize_bilinear_pairs_kernel(
    View source, View target, LinearAxis y_axis, LinearAxis x_axis, bool words) {
  constexpr int kOwn = kColumns<T>, kAll = kWidth * kOwn;
  __shared__ Pair<Index> row_pairs[kHeight];
  __shared__ Pair<Index> column_pairs[kAll];
  const int thread = static_cast<int>(threadIdx.y * kWidth + threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kAll;
  const int64_t x = first + threadIdx.x * kOwn;
  for (int64_t top = static_cast<int64_t>(blockIdx.y) * kHeight; top < target.height;
       top += static_cast<int64_t>(gridDim.y) * kHeight) {
    __syncthreads();
    if (thread < kAll) {
      if (first + thread < target.width) {
        column_pairs[thread] = pair_of<Index>(x_axis, first + thread, source.stride_x * sizeof(T));
      }
    } else if (thread < kAll + kHeight && top + thread - kAll < target.height) {
      row_pairs[thread - kAll] =
          pair_of<Index>(y_axis, top + thread - kAll, source.stride_y * sizeof(T));
    }
    __syncthreads();
    const int64_t y = top + threadIdx.y;
    if (y >= target.height || x >= target.width) continue;
    const Place<T, Index> place(target, y, x, words);
    const Pair<Index> row = row_pairs[threadIdx.y];
    Pair<Index> columns[kOwn];
    Index offsets[kOwn][4];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      columns[i] = column_pairs[threadIdx.x * kOwn + (i < place.count ? i : 0)];
      offsets[i][0] = row.near + columns[i].near;
      offsets[i][1] = row.near + columns[i].far;
      offsets[i][2] = row.far + columns[i].near;
      offsets[i][3] = row.far + columns[i].far;
    }
    each_planes<T>(source, target, [&](auto many, const T* from, T* to) {
      constexpr int kMany = decltype(many)::value;
      T pixels[kMany][kOwn][4];
#pragma unroll
      for (int p = 0; p < kMany; ++p) {
#pragma unroll
        for (int i = 0; i < 4 * kOwn; ++i) {
          pixels[p][i / 4][i % 4] = pixel_at(from + p * source.stride_c, offsets[i / 4][i % 4]);
        }
      }
#pragma unroll
      for (int p = 0; p < kMany; ++p) {
        float sums[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const float near_line = columns[i].near_weight * to_float(pixels[p][i][0]) +
                                  columns[i].far_weight * to_float(pixels[p][i][1]);
          const float far_line = columns[i].near_weight * to_float(pixels[p][i][2]) +
                                 columns[i].far_weight * to_float(pixels[p][i][3]);
          sums[i] = row.near_weight * near_line + row.far_weight * far_line;
        }
        place.store(to + p * target.stride_c, sums);
      }
    });
  }
}

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

template <typename T, typename Index>
__global__ void __launch_bounds__(256, kResident<Index>) resize_bilinear_planes_kernel(
    View source, View target, TapTable rows, TapTable columns, bool words) {
  constexpr int kOwn = kColumns<T>;
  const int64_t x = (static_cast<int64_t>(blockIdx.x) * kWidth + threadIdx.x) * kOwn;
  if (x >= target.width) return;
  const Index stride_x = static_cast<Index>(source.stride_x * sizeof(T));
  const Index stride_y = static_cast<Index>(source.stride_y * sizeof(T));
  for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
       y += static_cast<int64_t>(gridDim.y) * kHeight) {
    const Place<T, Index> place(target, y, x, words);
    const int row_count = rows.count[y];
    const Index top = static_cast<Index>(rows.first[y]) * stride_y;
    each_planes<T>(source, target, [&](auto many, const T* from, T* to) {
      constexpr int kMany = decltype(many)::value;
      float sums[kMany][kOwn] = {};
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (i >= place.count) continue;
        const int count = columns.count[x + i];
        const float* column_weights = columns.weights + columns.at(x + i, 0);
        const float* row_weight = rows.weights + rows.at(y, 0);
        Index line = top + static_cast<Index>(columns.first[x + i]) * stride_x;
        for (int j = 0; j < row_count; ++j) {
          float lines[kMany] = {};
          Index offset = line;
          const float* weight = column_weights;
#pragma unroll 2
          for (int k = 0; k < count; ++k) {
#pragma unroll
            for (int p = 0; p < kMany; ++p) {
              lines[p] += *weight * to_float(pixel_at(from + p * source.stride_c, offset));
            }
            offset += stride_x;
            weight += columns.step;
          }
#pragma unroll
          for (int p = 0; p < kMany; ++p) sums[p][i] += *row_weight * lines[p];
          line += stride_y;
          row_weight += rows.step;
        }
      }
#pragma unroll
      for (int p = 0; p < kMany; ++p) place.store(to + p * target.stride_c, sums[p]);
    });
  }
}

template <typename T>
__global__ void __launch_bounds__(256, 3) resize_bilinear_channels_kernel(
    View source, View target, TapTable rows, TapTable columns, bool whole_loads,
    bool whole_stores) {
  constexpr int kPack = Pack<T>::size;
  const Item item = item_of<true>(target, kPack);
  if (item.count == 0) return;
  const int64_t x = item.column;
  const int column_count = columns.count[x];
  for (int64_t image = blockIdx.z; image < target.batch; image += gridDim.z) {
    const T* from = static_cast<const T*>(source.data) + source.plane(image, item.channel) +
                    columns.first[x] * source.stride_x;
    T* to = static_cast<T*>(target.data) + target.plane(image, item.channel) + x * target.stride_x;
    for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
         y += static_cast<int64_t>(gridDim.y) * kHeight) {
      const int row_count = rows.count[y];
      const T* row = from + rows.first[y] * source.stride_y;
      const float* row_weight = rows.weights + rows.at(y, 0);
      float sums[kPack] = {};
      const auto load = [&](const T* pixel) {
        return load_pack(pixel, source.stride_c, item.count, whole_loads);
      };
      const auto add = [&](const Pack<T>& pack, float weight) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) sums[i] += weight * to_float(pack.values[i]);
      };
      const float* weights = columns.weights + columns.at(x, 0);
      if (row_count == 2 && column_count == 2) {  // usual when enlarging: four loads at once
        const Pack<T> packs[4] = {load(row), load(row + source.stride_x),
                                  load(row + source.stride_y),
                                  load(row + source.stride_y + source.stride_x)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          add(packs[i], row_weight[i / 2 * rows.step] * weights[i % 2 * columns.step]);
        }
      } else {
        for (int j = 0; j < row_count; ++j) {
#pragma unroll 2
          for (int k = 0; k < column_count; ++k) {
            add(load(row + k * source.stride_x), *row_weight * weights[k * columns.step]);
          }
          row += source.stride_y;
          row_weight += rows.step;
        }
      }
      store_pack(to + y * target.stride_y, target.stride_c, item.count, rounded<T>(sums),
                 whole_stores);
    }
  }
}

// Merges images into channels of one image, if the strides allow it.
void merge_images(View* source, View* target) {
  for (View* view : {source, target}) {
    if (view->channels == 1) view->stride_c = view->stride_n;
  }
  const auto merges = [](const View& view) {
    return view.batch == 1 || view.channels == 1 ||
           view.stride_n == view.channels * view.stride_c;
  };
  if (!merges(*source) || !merges(*target)) return;
  for (View* view : {source, target}) {
    view->channels *= view->batch;
    view->batch = 1;
  }
}

// Whether all offsets in a plane fit in 32 bits, in bytes.
template <typename T>
bool is_small(const View& view) {
  const int64_t last = (view.height - 1) * view.stride_y + (view.width - 1) * view.stride_x;
  return last < (int64_t{1} << 32) / static_cast<int64_t>(sizeof(T));
}

// Fewer blocks than planes: a block that computes several planes finds its positions once.
dim3 planes_grid(const View& target, int columns) {
  constexpr int64_t kEnough = 2048;  // blocks to fill any GPU a few times
  const int64_t groups = (target.channels + kPlanes - 1) / kPlanes;
  dim3 grid = grid_of((target.width + columns - 1) / columns, target.height, groups);
  const int64_t tiles = static_cast<int64_t>(grid.x) * grid.y;
  const int64_t rounds = std::max<int64_t>(1, groups / ((kEnough + tiles - 1) / tiles));
  grid.z = std::min(grid.z, static_cast<unsigned>((groups + rounds - 1) / rounds));
  return grid;
}

template <typename T>
bool words_fit(const View& target) {
  constexpr int64_t size = kColumns<T>;
  return reinterpret_cast<uintptr_t>(target.data) % 4 == 0 && target.stride_x == 1 &&
         target.stride_y % size == 0 && target.stride_c % size == 0 && target.stride_n % size == 0;
}

// Whether at most two source pixels per axis take part: no antialiasing, no backward.
bool has_pairs(const Resize& call) {
  return !is_channels_last(call.target) && !call.backward && call.rows().support == 1.0 &&
         call.columns().support == 1.0;
}

template <typename T, typename Index>
int resample_planes(const Resize& call, const TapTable& rows, const TapTable& columns,
                    void* stream) {
  View source = call.source, target = call.target;
  merge_images(&source, &target);
  const dim3 grid = planes_grid(target, kColumns<T>), block(kWidth, kHeight);
  const bool words = words_fit<T>(target);
  if (has_pairs(call)) {
    return launch(resize_bilinear_pairs_kernel<T, Index>, grid, block, stream, source, target,
                  call.rows(), call.columns(), words);
  }
  return launch(resize_bilinear_planes_kernel<T, Index>, grid, block, stream, source, target, rows,
                columns, words);
}

template <typename T>
int resample(const Resize& call, const TapTable& rows, const TapTable& columns, void* stream) {
  if (is_channels_last(call.target)) {
    const View& target = call.target;
    const dim3 grid = grid_of(items_of(target, Pack<T>::size, true), target.height, target.batch);
    return launch(resize_bilinear_channels_kernel<T>, grid, dim3(kWidth, kHeight), stream,
                  call.source, target, rows, columns, packable<T>(call.source, true),
                  packable<T>(target, true));
  }
  return is_small<T>(call.source) && is_small<T>(call.target)
             ? resample_planes<T, uint32_t>(call, rows, columns, stream)
             : resample_planes<T, int64_t>(call, rows, columns, stream);
}

}  // namespace

int64_t resize_bilinear_workspace(const Resize& call) {
  if (has_pairs(call)) return 0;
  return TapTable::words(call.target.height, call.most(call.rows())) +
         TapTable::words(call.target.width, call.most(call.columns()));
}

int resize_bilinear(const Resize& call, void* workspace, void* stream) {
  const int64_t height = call.target.height, width = call.target.width;
  const LinearAxis y = call.rows(), x = call.columns();
  TapTable rows = {}, columns = {};
  if (!has_pairs(call)) {
    int32_t* words = static_cast<int32_t*>(workspace);
    rows = TapTable::across(words, height, call.most(y));
    columns = TapTable::across(words + TapTable::words(height, call.most(y)), width, call.most(x));
    const unsigned blocks = static_cast<unsigned>((height + width + 255) / 256);
    const int error = launch(resize_bilinear_taps_kernel, dim3(blocks), dim3(256), stream, y, x,
                             rows, columns, height, width, call.backward);
    if (error != cudaSuccess) return error;
  }
  return with_type(call.source.dtype, [&](auto type) {
    return resample<decltype(type)>(call, rows, columns, stream);
  });
}

}  // namespace dafast::cuda
