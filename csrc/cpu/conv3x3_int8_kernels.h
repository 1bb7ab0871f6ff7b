// The kernel of conv3x3_int8.cpp, only for AVX-512 with VNNI.
//
// The rows of the input that a strip of the result needs are rounded to bytes, with borders that
// stand for 0. The pixels of a row are contiguous, so the window of a pixel is three runs of 3 C
// bytes, and a few pixels times 32 channels are a tile of a product.

#ifdef DAFAST_IN_AVX512

#include "vectors16.h"
#include "tile_int8.h"
#include "bytes_int8.h"

// Rounds the rows [first, last) of image b to bytes; rows outside of the image are zeros.
ByteSteps round_rows(const Conv3x3Int8& call, int64_t b, int64_t first, int64_t last,
                     uint8_t* bytes) {
  const int64_t length = call.width * call.channels;
  const int64_t row_bytes = conv_row_pixels(call) * call.channels;
  const int64_t begin = first < 0 ? 0 : first, end = last < call.height ? last : call.height;
  const __m512 least = _mm512_set1_ps(call.relu_input ? 0.0f : -INFINITY);
  const auto part = [&](int64_t row, int64_t i) {
    const int64_t at = (b * call.height + row) * length + i;
    // In this order NaN is kept.
    return _mm512_max_ps(least, load(call.x, call.bfloat16, at, first_of(length - i)));
  };
  ByteRange range = range_of_zero();
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < length; i += 16) include(range, part(row, i));
  }
  const ByteSteps steps = steps_of(range);
  memset(bytes, steps.zero, static_cast<size_t>((last - first) * row_bytes));
  const __m512 inverses = _mm512_set1_ps(steps.inverse);
  const __m512i zeros = _mm512_set1_epi32(steps.zero);
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* const to = bytes + (row - first) * row_bytes + call.channels;
    for (int64_t i = 0; i < length; i += 16) {
      _mm_mask_storeu_epi8(to + i, first_of(length - i), bytes_of(part(row, i), inverses, zeros));
    }
  }
  return steps;
}

void convolve_strip(const Conv3x3Int8& call, int64_t b, int64_t y, uint8_t* scratch) {
  const int64_t depth = 9 * call.channels, stride = call.stride;
  const int64_t row_bytes = conv_row_pixels(call) * call.channels;
  const int64_t rows = call.out_height - y < kStripRows ? call.out_height - y : kStripRows;
  const ByteSteps steps =
      round_rows(call, b, y * stride - 1, (y + rows - 1) * stride + 2, scratch);
  for (int64_t column = 0; column < call.columns; column += kConvColumns) {
    const int8_t* const panel = call.weights + column * depth;
    alignas(64) int32_t start[kConvColumns], sums[kConvPixels * kConvColumns];
    __m512 scales[2], biases[2];
    __mmask16 masks[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = column + 16 * j;
      masks[j] = first_of(call.columns - at);
      scales[j] = _mm512_mul_ps(_mm512_set1_ps(steps.step),
                                _mm512_maskz_loadu_ps(masks[j], call.scales + at));
      biases[j] = _mm512_maskz_loadu_ps(masks[j], call.bias + at);
      const __m512i weights = _mm512_maskz_loadu_epi32(masks[j], call.sums + at);
      _mm512_store_si512(start + 16 * j, _mm512_mullo_epi32(weights, _mm512_set1_epi32(-steps.zero)));
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t x = 0; x < call.out_width; x += kConvPixels) {
        const uint8_t* const window =
            scratch + row * stride * row_bytes + x * stride * call.channels;
        multiply_tile<kConvPixels, 2>(window, stride * call.channels, 3, row_bytes,
                                      3 * call.channels / 4, panel, start, sums);
        const int64_t left = call.out_width - x, pixels = left < kConvPixels ? left : kConvPixels;
        const int64_t pixel = (b * call.out_height + y + row) * call.out_width + x;
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t j = 0; j < 2; ++j) {
            const int64_t at = (pixel + p) * call.columns + column + 16 * j;
            const __m512i sum = _mm512_load_si512(sums + p * kConvColumns + 16 * j);
            __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales[j], biases[j]);
            if (call.relu) value = _mm512_max_ps(_mm512_setzero_ps(), value);  // keeps NaN
            for (const void* add : call.add) {
              if (add) value = _mm512_add_ps(value, load(add, call.bfloat16, at, masks[j]));
            }
            store(value, call.out, call.bfloat16, at, masks[j]);
          }
        }
      }
    }
  }
}

#else

constexpr ConvStrip convolve_strip = nullptr;

#endif
