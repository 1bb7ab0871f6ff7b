// The kernels of linear_packed.cpp, for one instruction set.
#include "rows_float.h"

template <typename Cells>
void rows_of(const LinearPacked& call, int64_t row, int64_t rows, float* scratch) {
  const FloatLayer& layer = call.layer;
  const int64_t stride = (layer.depth + Cells::PER_CELL - 1) / Cells::PER_CELL;
  float* const cells = scratch + layer.depth + kColumns;
  for (int64_t r = 0; r < rows; ++r) {
    keep_cells<Cells>(call.x, call.dtype, (row + r) * layer.depth, layer.depth, false, scratch,
                      cells + r * stride, 0);
  }
  multiply_rows<Cells>(cells, stride, rows, layer, 0, layer.columns,
                       [&](int64_t r, int64_t column, const float* values, auto count) {
                         store(values, count, call.out, call.dtype,
                               (row + r) * layer.columns + column);
                       });
}

constexpr PackedRows packed_rows = rows_of<SingleCells>;
#ifdef DAFAST_IN_AVX512_BF16
constexpr PackedRows packed_rows_pairs = rows_of<PairCells>;
#else
constexpr PackedRows packed_rows_pairs = nullptr;
#endif
