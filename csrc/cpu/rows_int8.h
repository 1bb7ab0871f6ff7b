// Rows of levels times the weights of a layer, for kernels files, from AVX2 or ARM's dot products on.
#include "vectors16.h"
#include "tile_int8.h"
#include "bytes_int8.h"

// A group of rows as levels, `depth` rounded up to 4 apart.
struct ByteRows {
  Level* levels;
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
  Level* const to = rows.levels + r * round_up(depth, kInt8Depth);
  const Floats16 inverse = all(steps.inverse);
  const Ints16 zero = all(steps.zero);
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t left = round_up(depth, kInt8Depth) - k;  // the padding meets weights of 0
    put_levels_of(to + k, part(k), inverse, zero, first_of(left));
  }
}

// Calls finish(row, column, values, mask) for every 16 results of the layer.
template <typename Finish>
inline void multiply_rows(const ByteRows& group, int64_t rows, const Int8Layer& layer,
                          const Finish& finish) {
  const int64_t depth = round_up(layer.depth, kInt8Depth);
  constexpr int32_t kZeros[kInt8Columns] = {};
  const TileSettings settings(depth / 4);
  alignas(64) int32_t sums[kRowTile * kInt8Columns];
  for (int64_t column = 0; column < layer.columns; column += kInt8Columns) {
    Mask16 masks[2];
    Floats16 scales[2], biases[2];
    Ints16 weights[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = column + 16 * j;
      masks[j] = first_of(layer.columns - at);
      scales[j] = floats_at(layer.scales + at, masks[j]);
      biases[j] = floats_at(layer.bias + at, masks[j]);
      weights[j] = ints_at(layer.sums + at, masks[j]);
    }
    for (int64_t tile = 0; tile < rows; tile += kRowTile) {
      multiply_tile<kRowTile, 2>(group.levels + tile * depth, depth, 1, 0, depth / 4,
                                 layer.weights + column * depth, kZeros, sums);
      for (int64_t r = 0; r < kRowTile && tile + r < rows; ++r) {
        const Floats16 step = all(group.steps[tile + r]);
        const Ints16 zero = all(group.zeros[tile + r]);
        for (int64_t j = 0; j < 2; ++j) {
          const Ints16 sum = ints_at(sums + r * kInt8Columns + 16 * j);
          const Ints16 less = sub(sum, mul(weights[j], zero));
          finish(tile + r, column + 16 * j,
                 fmadd(to_floats(less), mul(scales[j], step), biases[j]), masks[j]);
        }
      }
    }
  }
}
