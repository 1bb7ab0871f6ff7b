// Rows of float32 or bfloat16 times the weights of a layer, for kernels files.
#include "lanes.h"
#include "tile_float.h"

// Stores `count` values as cells, from the cell `first` on, and fills the last one with zeros; with
// `relu`, negative values become 0. `buffer` has room for the values, padded.
template <typename Cells>
inline void keep_cells(const void* data, Dtype dtype, int64_t at, int64_t count, bool relu,
                       float* DAFAST_RESTRICT buffer, float* cells, int64_t first) {
  constexpr int64_t kPart = Cells::PER_CELL;
  if (kPart == 2 && dtype == Dtype::bfloat16 && count % 2 == 0) {
    const uint16_t* DAFAST_RESTRICT from = static_cast<const uint16_t*>(data) + at;
    auto* DAFAST_RESTRICT to = reinterpret_cast<uint16_t*>(cells + first);
    const uint16_t most = relu ? 0xff80 : 0x7fff;  // from -0 to -infinity; NaN is beyond
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] > 0x7fff && from[i] <= most ? 0 : from[i];
    return;
  }
  if (kPart == 1 && dtype == Dtype::float32) {
    const float* DAFAST_RESTRICT from = static_cast<const float*>(data) + at;
    float* DAFAST_RESTRICT to = cells + first;
    const float least = relu ? 0.0f : -INFINITY;
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] < least ? least : from[i];
    return;
  }
  const float* values = load(data, dtype, at, 1, count, buffer);
  const int64_t padded = (count + kPart - 1) / kPart * kPart;
  if (relu) {
    for (int64_t i = 0; i < padded; ++i) buffer[i] = values[i] < 0.0f ? 0.0f : values[i];
    values = buffer;
  }
  Cells::keep(values, padded, cells, first * kPart);
}

// The columns of a whole panel, as a constant.
struct WholePanel {
  constexpr operator int64_t() const { return kColumns; }
};

// Calls finish(row, column, values, count) for every row of every panel of the columns
// [begin, end), which begin at a panel. `left` has rows of `stride` cells, up to a multiple of
// the rows of a tile.
template <typename Cells, typename Finish>
inline void multiply_rows(const float* left, int64_t stride, int64_t rows, const FloatLayer& layer,
                          int64_t begin, int64_t end, const Finish& finish) {
  const int64_t depth = (layer.depth + Cells::PER_CELL - 1) / Cells::PER_CELL;
  const typename Cells::Settings settings(depth);
  alignas(64) float sums[Cells::kRows * kColumns];
  for (int64_t column = begin; column < end; column += kColumns) {
    const int64_t count = end - column < kColumns ? end - column : kColumns;
    for (int64_t tile = 0; tile < rows; tile += Cells::kRows) {
      for (int64_t j = 0; j < kColumns; j += kTileColumns) {
        multiply_tile<Cells>(left + tile * stride, stride, 1, 0, depth,
                             layer.weights + column * depth + j, layer.bias + column + j, 0,
                             sums + j, kColumns);
      }
      for (int64_t r = 0; r < Cells::kRows && tile + r < rows; ++r) {
        if (count == kColumns) {
          finish(tile + r, column, sums + r * kColumns, WholePanel{});
        } else {
          finish(tile + r, column, sums + r * kColumns, count);
        }
      }
    }
  }
}
