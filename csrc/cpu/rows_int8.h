// Rows of bytes times the weights of a layer, for kernels files, within DAFAST_IN_AVX512.
#include "vectors16.h"
#include "tile_int8.h"
#include "bytes_int8.h"

constexpr int64_t kRowTile = 12;  // rows of 2 vectors each

// A group of rows as bytes, `depth` rounded up to 4 apart.
struct ByteRows {
  uint8_t* bytes;
  float steps[kInt8Rows];
  int32_t zeros[kInt8Rows];
};

// Rounds row r of a group. part(k) returns 16 values; values beyond `depth` are 0.
template <typename Part>
inline void round_row(ByteRows& rows, int64_t r, int64_t depth, const Part& part) {
  ByteRange range = range_of_zero();
  for (int64_t k = 0; k < depth; k += 16) include(range, part(k));
  const ByteSteps steps = steps_of(range);
  rows.steps[r] = steps.step;
  rows.zeros[r] = steps.zero;
  uint8_t* const to = rows.bytes + r * round_up(depth, kInt8Depth);
  const __m512 inverse = _mm512_set1_ps(steps.inverse);
  const __m512i zero = _mm512_set1_epi32(steps.zero);
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t left = round_up(depth, kInt8Depth) - k;  // the padding meets weights of 0
    _mm_mask_storeu_epi8(to + k, first_of(left), bytes_of(part(k), inverse, zero));
  }
}

// Calls finish(row, column, values, mask) for every 16 results of the layer.
template <typename Finish>
inline void multiply_rows(const ByteRows& group, int64_t rows, const Int8Layer& layer,
                          const Finish& finish) {
  const int64_t depth = round_up(layer.depth, kInt8Depth);
  constexpr int32_t kZeros[kInt8Columns] = {};
  alignas(64) int32_t sums[kRowTile * kInt8Columns];
  for (int64_t column = 0; column < layer.columns; column += kInt8Columns) {
    __mmask16 masks[2];
    __m512 scales[2], biases[2];
    __m512i weights[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = column + 16 * j;
      masks[j] = first_of(layer.columns - at);
      scales[j] = _mm512_maskz_loadu_ps(masks[j], layer.scales + at);
      biases[j] = _mm512_maskz_loadu_ps(masks[j], layer.bias + at);
      weights[j] = _mm512_maskz_loadu_epi32(masks[j], layer.sums + at);
    }
    for (int64_t tile = 0; tile < rows; tile += kRowTile) {
      multiply_tile<kRowTile, 2>(group.bytes + tile * depth, depth, 1, 0, depth / 4,
                                 layer.weights + column * depth, kZeros, sums);
      for (int64_t r = 0; r < kRowTile && tile + r < rows; ++r) {
        const __m512 step = _mm512_set1_ps(group.steps[tile + r]);
        const __m512i zero = _mm512_set1_epi32(group.zeros[tile + r]);
        for (int64_t j = 0; j < 2; ++j) {
          const __m512i sum = _mm512_load_si512(sums + r * kInt8Columns + 16 * j);
          const __m512i less = _mm512_sub_epi32(sum, _mm512_mullo_epi32(weights[j], zero));
          finish(tile + r, column + 16 * j,
                 _mm512_fmadd_ps(_mm512_cvtepi32_ps(less), _mm512_mul_ps(scales[j], step),
                                 biases[j]),
                 masks[j]);
        }
      }
    }
  }
}
