// Turns photos of any sizes into the input of the network: resize, normalisation, padding, layout
// and dtype, in one kernel that writes every element once.
#include "launch.h"

namespace dafast::cuda {
namespace {

constexpr int kPhotos = 32;  // of one launch, passed as a kernel parameter

struct Photos {
  Photo photos[kPhotos];
};

struct Colours {
  float scale[3], shift[3];
};

// Linear and cubic taps with one interface; place(k) clamps cubic taps at the border.
struct CubicReader {
  CubicTaps taps;
  int64_t size;
  static constexpr int count = 4;

  __device__ CubicReader(int64_t source, int64_t target, bool, int64_t index)
      : taps(cubic_taps(index, source, target)), size(source) {}
  __device__ int64_t place(int k) const { return clamp_index(taps.first + k, size); }
  __device__ float weight(int k) const { return taps.weights[k]; }
};

struct LinearReader {
  LinearTaps taps;
  int count;

  __device__ LinearReader(int64_t source, int64_t target, bool antialias, int64_t index)
      : taps(linear_taps(linear_axis(source, target, false, antialias), index)),
        count(taps.count) {}
  __device__ int64_t place(int k) const { return taps.first + k; }
  __device__ float weight(int k) const { return taps.weight(k); }
};

template <typename S, typename T, typename Reader>
__global__ void __launch_bounds__(256, 2) preprocess_kernel(const __grid_constant__ Photos photos,
                                                         View target, Colours colours,
                                                         Padding padding, bool antialias,
                                                         bool whole_stores) {
  constexpr int kPack = Pack<T>::size;
  const Item item = item_of<false>(target, kPack);
  if (item.count == 0) return;
  const Photo& photo = photos.photos[blockIdx.z];
  const bool interleaved = target.stride_c == 1;
  for (int64_t y = static_cast<int64_t>(blockIdx.y) * kHeight + threadIdx.y; y < target.height;
       y += static_cast<int64_t>(gridDim.y) * kHeight) {
    const int64_t resized_y = padded_source(padding, y - photo.top, photo.resized_height);
    const Reader rows(photo.height, photo.resized_height, antialias,
                      resized_y < 0 ? 0 : resized_y);
    // In the order of the output: by channels, or by pixels.
    Pack<T>* packs = own_packs<T, 3>();
#pragma unroll 1
    for (int i = 0; i < item.count; ++i) {
      const int64_t resized_x =
          padded_source(padding, item.column + i - photo.left, photo.resized_width);
      float sums[3] = {};
      const bool shown = resized_y >= 0 && resized_x >= 0;
      if (shown) {
        const Reader columns(photo.width, photo.resized_width, antialias, resized_x);
        for (int j = 0; j < rows.count; ++j) {
          const S* row = static_cast<const S*>(photo.data) + rows.place(j) * photo.stride_y;
          float line[3] = {};
          for (int k = 0; k < columns.count; ++k) {
            const S* pixel = row + columns.place(k) * photo.stride_x;
            const float weight = columns.weight(k);
#pragma unroll
            for (int c = 0; c < 3; ++c) line[c] += weight * to_float(pixel[c * photo.stride_c]);
          }
          const float weight = rows.weight(j);
#pragma unroll
          for (int c = 0; c < 3; ++c) sums[c] += weight * line[c];
        }
      }
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const int at = interleaved ? 3 * i + c : kPack * c + i;
        packs[at / kPack].values[at % kPack] =
            from_float<T>(shown ? sums[c] * colours.scale[c] + colours.shift[c] : 0.0f);
      }
    }
    T* out = static_cast<T*>(target.data) + static_cast<int64_t>(blockIdx.z) * target.stride_n +
             y * target.stride_y + item.column * target.stride_x;
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int left = 3 * item.count - c * kPack;
      store_pack(out + c * (interleaved ? kPack : target.stride_c),
                 interleaved ? 1 : target.stride_x, interleaved ? min(left, kPack) : item.count,
                 packs[c], whole_stores);
    }
  }
}

template <typename S, typename T, typename Reader>
int run(const Preprocess& call, void* stream) {
  Colours colours;
  for (int c = 0; c < 3; ++c) {
    colours.scale[c] = call.scale[c];
    colours.shift[c] = call.shift[c];
  }
  constexpr int kPack = Pack<T>::size;
  const View& whole = call.target;
  for (int64_t begin = 0; begin < whole.batch; begin += kPhotos) {
    View target = whole;
    target.batch = std::min<int64_t>(kPhotos, whole.batch - begin);
    target.data = static_cast<T*>(whole.data) + begin * whole.stride_n;
    Photos photos = {};
    std::copy(call.photos + begin, call.photos + begin + target.batch, photos.photos);
    const bool stores = target.stride_c == 1
                            ? aligned(target.data) && target.stride_x == 3 &&
                                  target.stride_y % kPack == 0 && target.stride_n % kPack == 0
                            : packable<T>(target, false);
    const dim3 grid = grid_of(items_of(target, kPack, false), target.height, target.batch);
    const int error = launch(preprocess_kernel<S, T, Reader>, grid, dim3(kWidth, kHeight), stream,
                             photos, target, colours, call.padding, call.antialias, stores);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int preprocess(const Preprocess& call, void* stream) {
  return with_type(call.target.dtype, [&](auto type) -> int {
    using T = decltype(type);
    if (call.dtype == Dtype::uint8) {
      return call.cubic ? run<uint8_t, T, CubicReader>(call, stream)
                        : run<uint8_t, T, LinearReader>(call, stream);
    }
    return call.cubic ? run<float, T, CubicReader>(call, stream)
                      : run<float, T, LinearReader>(call, stream);
  });
}

}  // namespace dafast::cuda
