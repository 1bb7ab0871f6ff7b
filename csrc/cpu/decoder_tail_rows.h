// Rows of the decoder's tail, for the instruction set under which this is included.
//
// Three rows of the upsampled map are held at a time, with a border of zeros; the 3x3 convolution
// of a few pixels, all its 32 channels in registers, runs over them as a product of 3 x 3C numbers,
// for the pixels of a row lie side by side. What comes out is folded with the 1x1 convolution at
// once: neither the upsampled map nor the 32 channels are ever in memory.
//
// Everything is in an anonymous namespace, and nothing of the standard library is used: a function
// compiled here for AVX-512 must never be the copy that the linker keeps for everybody.
#include <cstdint>
#include <cstring>

#include "decoder_tail.h"

namespace dafast::cpu {
namespace {

constexpr int64_t kMostPixels = 16;  // that any kernel computes at once

inline float widen(float x) { return x; }

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Where `position` of `out` lies among `in` pixels, corners aligned.
struct Tap {
  int64_t first, second;
  float weight;  // of the second
};

inline Tap tap(int64_t position, int64_t out, int64_t in) {
  // As PyTorch computes it: the scale is float32, and so is the product.
  const float scale = out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f;
  const float source = scale * static_cast<float>(position);
  int64_t first = static_cast<int64_t>(source);
  first = first < in - 1 ? first : in - 1;
  const float weight = source - static_cast<float>(first);
  return {first, first + (first < in - 1), weight < 1.0f ? weight : 1.0f};
}

template <typename T>
void blend(const T* a, const T* b, float weight, int64_t count, float* __restrict out) {
  const float rest = 1.0f - weight;
  for (int64_t i = 0; i < count; ++i) out[i] = rest * widen(a[i]) + weight * widen(b[i]);
}

// Row y of the upsampled map of an image into `row`, whose first pixel is the border's.
template <typename Kernel, typename T>
void upsample_row(const Tail& call, const T* image, int64_t y, float* mixed,
                  typename Kernel::Element* row) {
  const int64_t channels = call.channels;
  const Tap rows = tap(y, call.out_height, call.height);
  const T* a = image + rows.first * call.stride_y;
  const T* b = image + rows.second * call.stride_y;
  if (call.stride_x == channels) {
    blend(a, b, rows.weight, call.width * channels, mixed);
  } else {
    for (int64_t x = 0; x < call.width; ++x) {
      blend(a + x * call.stride_x, b + x * call.stride_x, rows.weight, channels,
            mixed + x * channels);
    }
  }
  for (int64_t x = 0; x < call.out_width; ++x) {
    const Tap columns = tap(x, call.out_width, call.width);
    Kernel::mix(mixed + columns.first * channels, mixed + columns.second * channels,
                columns.weight, channels, row + (x + 1) * channels);
  }
}

template <typename Kernel, typename T>
void tail_rows(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  using Element = typename Kernel::Element;
  constexpr int64_t kPixels = Kernel::kPixels;
  static_assert(kPixels <= kMostPixels, "tail_scratch counts on it");
  const int64_t channels = call.channels, height = call.out_height, width = call.out_width;
  const int64_t length = (width + kMostPixels + 2) * channels;  // of a row with its borders
  const auto* weights = static_cast<const Element*>(call.weights1);
  Element* rows = static_cast<Element*>(scratch);
  float* mixed = reinterpret_cast<float*>(rows + 4 * length);
  std::memset(rows, 0, 4 * length * sizeof(Element));  // the borders; the fourth row stays zero
  int64_t ready = -1;  // the last row that is upsampled, counted through all images
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / height, y = row - n * height;
    const T* image = static_cast<const T*>(call.x) + n * call.stride_n;
    const Element* window[3];
    for (int64_t ky = 0; ky < 3; ++ky) {
      const int64_t wanted = y + ky - 1;
      if (wanted < 0 || wanted >= height) {
        window[ky] = rows + 3 * length;
        continue;
      }
      const int64_t index = n * height + wanted;
      Element* place = rows + (index % 3) * length;
      if (index > ready) {
        upsample_row<Kernel, T>(call, image, wanted, mixed, place);
        ready = index;
      }
      window[ky] = place;
    }
    float* out = call.out + row * width;
    for (int64_t x = 0; x < width; x += kPixels) {
      float values[kPixels];
      Kernel::convolve(call, window, x * channels, weights, values);
      const int64_t count = width - x < kPixels ? width - x : kPixels;
      for (int64_t p = 0; p < count; ++p) out[x + p] = values[p] + call.bias2;
    }
  }
}

}  // namespace
}  // namespace dafast::cpu
