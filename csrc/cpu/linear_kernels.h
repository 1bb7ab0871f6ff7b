// The kernels of linear.cpp, for one instruction set.
#include "tile_float.h"

// Adds a tile of sums to rows of `out`, or writes them as the first. Long sums are made of parts, which
// round less.
inline void add_tile(const float* sums, float* out, int64_t out_stride, int64_t rows, bool first) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int w = 0; w < kTileVectors; ++w) {
      float* const to = out + r * out_stride + w * LANES;
      const Floats sum = load(sums + r * kTileColumns + w * LANES);
      store(to, first ? sum : load(to) + sum);
    }
  }
}

// Some rows of the result, in columns [begin, end) and for terms [first, first + steps) of the sums.
// A tile of the left side stays in the first-level cache for all columns.
void add_terms(const LinearProduct& call, const float* left, int64_t rows, float* out,
               int64_t begin, int64_t end, int64_t first, int64_t steps) {
  const int64_t depth = call.depth;
  for (int64_t column = begin; column < end; column += kTileColumns) {
    const float* const right = call.right + column / kColumns * kColumns * depth +
                               first * kColumns + column % kColumns;
    const float* const start = first ? call.zeros : call.bias + column;
    if (!first && rows == kTileRows) {
      multiply_tile<SingleCells>(left, depth, 1, 0, steps, right, start, 0, out + column,
                                 call.columns);
      continue;
    }
    alignas(64) float sums[kTileRows * kTileColumns];
    multiply_tile<SingleCells>(left + first, depth, 1, 0, steps, right, start, 0, sums,
                               kTileColumns);
    add_tile(sums, out + column, call.columns, rows, !first);
  }
}

// Rows [row, row + rows) of the result. Those that do not fill a tile are computed from a copy.
void rows_of(const LinearProduct& call, int64_t row, int64_t rows, float* scratch) {
  const int64_t depth = call.depth, columns = call.columns;
  const int64_t whole = rows / kTileRows * kTileRows, rest = rows - whole;
  const float* const left = call.left + row * depth;
  if (rest) memcpy(scratch, left + whole * depth, static_cast<size_t>(rest * depth) * sizeof(float));
  for (int64_t begin = 0; begin < columns; begin += kGroupColumns) {
    const int64_t end = columns - begin < kGroupColumns ? columns : begin + kGroupColumns;
    for (int64_t first = 0; first < depth; first += kPart) {
      const int64_t steps = depth - first < kPart ? depth - first : kPart;
      for (int64_t tile = 0; tile < rows; tile += kTileRows) {
        const bool all = tile < whole;
        add_terms(call, all ? left + tile * depth : scratch, all ? kTileRows : rest,
                  call.out + (row + tile) * columns, begin, end, first, steps);
      }
    }
  }
}

// Sums over `steps` rows of `count` columns, a multiple of LANES, which are added to `sums`.
inline void add_rows(const float* from, int64_t stride, int64_t steps, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; i += LANES) {
    Floats sum{};
    for (int64_t t = 0; t < steps; ++t) sum = sum + load(from + t * stride + i);
    store(sums + i, load(sums + i) + sum);
  }
}

// A block of the gradient of the weights, or of its transpose, from `row` and `column` on.
void gradient_of(const LinearGradient& call, int64_t row, int64_t column, float* scratch) {
  const int64_t rows = call.rows - row < kGradientRows ? call.rows - row : kGradientRows;
  const int64_t left_columns = call.columns - column;
  const int64_t columns = left_columns < kGradientColumns ? left_columns : kGradientColumns;
  float* const left = scratch + kGradientRows * kGradientColumns;
  float* const bias = left + kPart * kGradientRows;
  memset(scratch, 0, static_cast<size_t>(gradient_floats()) * sizeof(float));
  for (int64_t token = 0; token < call.tokens; token += kPart) {
    const int64_t steps = call.tokens - token < kPart ? call.tokens - token : kPart;
    for (int64_t t = 0; t < steps; ++t) {
      const float* const from = call.left + (token + t) * call.rows + row;
      if (rows == kGradientRows) {  // a copy of known size is not a call
        memcpy(left + t * kGradientRows, from, kGradientRows * sizeof(float));
      } else {
        memcpy(left + t * kGradientRows, from, static_cast<size_t>(rows) * sizeof(float));
      }
    }
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      const float* const right = call.right + (column + c) / kColumns * kColumns * call.tokens +
                                 token * kColumns + (column + c) % kColumns;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        alignas(64) float sums[kTileRows * kTileColumns];
        multiply_tile<SingleCells>(left + r, 1, steps, kGradientRows, 1, right, call.zeros, 0,
                                   sums, kTileColumns);
        add_tile(sums, scratch + r * kGradientColumns + c, kGradientColumns, kTileRows, false);
      }
    }
    if (!call.transposed && column == 0) add_rows(left, kGradientRows, steps, rows, bias);
    for (int64_t c = 0; c < columns && call.transposed && row == 0; c += kColumns) {
      add_rows(call.right + (column + c) * call.tokens + token * kColumns, kColumns, steps,
               kColumns, bias + c);
    }
  }
  if (call.transposed) {
    for (int64_t c = 0; c < columns; ++c) {
      float* const to = call.weight + (column + c) * call.rows + row;
      for (int64_t r = 0; r < rows; ++r) to[r] = scratch[r * kGradientColumns + c];
    }
    if (row == 0) memcpy(call.bias + column, bias, static_cast<size_t>(columns) * sizeof(float));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(call.weight + (row + r) * call.columns + column, scratch + r * kGradientColumns,
           static_cast<size_t>(columns) * sizeof(float));
  }
  if (column == 0) memcpy(call.bias + row, bias, static_cast<size_t>(rows) * sizeof(float));
}

constexpr LinearRows linear_rows = rows_of;
constexpr LinearBlock linear_gradient = gradient_of;
