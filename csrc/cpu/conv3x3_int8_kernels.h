// The kernel of conv3x3_int8.cpp, from AVX2 or ARM's dot products on.
//
// The rows of the input that a strip of the result needs are rounded to levels, with borders that
// stand for 0. The pixels of a row are contiguous, so the window of a pixel is three runs of 3 C
// levels, and a few pixels times 32 channels are a tile of a product.

#if defined(DAFAST_IN_AVX512) || defined(DAFAST_IN_AVX2) || defined(DAFAST_IN_DOTPROD)

#include "vectors16.h"
#include "tile_int8.h"
#include "bytes_int8.h"

constexpr int64_t kConvPixels = kRowTile;

// Rounds the rows [first, last) of image b to levels; rows outside of the image are zeros.
ByteSteps round_rows(const Conv3x3Int8& call, int64_t b, int64_t first, int64_t last,
                     Level* levels) {
  const int64_t length = call.width * call.channels;
  const int64_t row_levels = call.row_pixels * call.channels;
  const int64_t begin = first < 0 ? 0 : first, end = last < call.height ? last : call.height;
  const Floats16 bottom = all(call.relu_input ? 0.0f : -INFINITY);
  const auto part = [&](int64_t row, int64_t i) {
    const int64_t at = (b * call.height + row) * length + i;
    // In this order NaN is kept.
    return max(bottom, load(call.x, call.bfloat16, at, first_of(length - i)));
  };
  ByteRange range = range_of_zero();
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < length; i += 16) include(range, part(row, i));
  }
  const ByteSteps steps = steps_of(range);
  const Floats16 inverses = all(steps.inverse);
  const Ints16 zeros = all(steps.zero);
  const int64_t size = (last - first) * row_levels;
  for (int64_t i = 0; i < size; i += 16) put_levels(levels + i, zeros, first_of(size - i));
  for (int64_t row = begin; row < end; ++row) {
    Level* const to = levels + (row - first) * row_levels + call.channels;
    for (int64_t i = 0; i < length; i += 16) {
      put_levels_of(to + i, part(row, i), inverses, zeros, first_of(length - i));
    }
  }
  return steps;
}

void convolve_strip(const Conv3x3Int8& call, int64_t b, int64_t y, uint8_t* memory) {
  Level* const scratch = reinterpret_cast<Level*>(memory);
  const int64_t depth = 9 * call.channels, stride = call.stride;
  const int64_t row_levels = call.row_pixels * call.channels;
  const int64_t rows = call.out_height - y < kStripRows ? call.out_height - y : kStripRows;
  const ByteSteps steps =
      round_rows(call, b, y * stride - 1, (y + rows - 1) * stride + 2, scratch);
  const TileSettings settings(3 * call.channels / 4);
  for (int64_t column = 0; column < call.columns; column += kConvColumns) {
    const int8_t* const panel = call.weights + column * depth;
    alignas(64) int32_t start[kConvColumns], sums[kConvPixels * kConvColumns];
    Floats16 scales[2], biases[2];
    Mask16 masks[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = column + 16 * j;
      masks[j] = first_of(call.columns - at);
      scales[j] = mul(all(steps.step), floats_at(call.scales + at, masks[j]));
      biases[j] = floats_at(call.bias + at, masks[j]);
      put(start + 16 * j, mul(ints_at(call.sums + at, masks[j]), all(-steps.zero)));
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < call.out_width; x += kConvPixels) {
        const Level* const window =
            scratch + row * stride * row_levels + x * stride * call.channels;
        multiply_tile<kConvPixels, 2>(window, stride * call.channels, 3, row_levels,
                                      3 * call.channels / 4, panel, start, sums);
        const int64_t left = call.out_width - x, pixels = left < kConvPixels ? left : kConvPixels;
        const int64_t pixel = (b * call.out_height + y + row) * call.out_width + x;
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t j = 0; j < 2; ++j) {
            const int64_t at = (pixel + p) * call.columns + column + 16 * j;
            const Ints16 sum = ints_at(sums + p * kConvColumns + 16 * j);
            Floats16 value = fmadd(to_floats(sum), scales[j], biases[j]);
            if (call.relu) value = max(all(0.0f), value);  // keeps NaN
            for (const void* more : call.add) {
              if (more) value = add(value, load(more, call.bfloat16, at, masks[j]));
            }
            store(value, call.out, call.bfloat16, at, masks[j]);
          }
        }
      }
    }
  }
}

#else

constexpr int64_t kConvPixels = 1;
constexpr ConvStrip convolve_strip = nullptr;

#endif
