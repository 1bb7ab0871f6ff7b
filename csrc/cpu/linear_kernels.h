// The kernels of linear.cpp, for one instruction set.
#include "tile_float.h"

// Adds a tile of sums to a tile of `out`. Long sums are made of parts, which round less.
inline void add_tile(const float* sums, float* out, int64_t out_stride) {
  for (int r = 0; r < kTileRows; ++r) {
    for (int w = 0; w < kTileVectors; ++w) {
      float* const to = out + r * out_stride + w * LANES;
      store(to, load(to) + load(sums + r * kTileColumns + w * LANES));
    }
  }
}

// out = start + left * right, in parts of the depth.
inline void multiply_in_parts(const float* left, int64_t depth, const float* right,
                              const float* start, const float* zeros, float* out,
                              int64_t out_stride) {
  for (int64_t first = 0; first < depth; first += kPart) {
    const int64_t steps = depth - first < kPart ? depth - first : kPart;
    const float* const from = right + first * kColumns;
    if (first == 0) {
      multiply_tile<SingleCells>(left, depth, 1, 0, steps, from, start, 0, out, out_stride);
      continue;
    }
    alignas(64) float sums[kTileRows * kTileColumns];
    multiply_tile<SingleCells>(left + first, depth, 1, 0, steps, from, zeros, 0, sums,
                               kTileColumns);
    add_tile(sums, out, out_stride);
  }
}

// Rows [row, row + rows) of the result. Those that do not fill a tile are computed from a copy.
void rows_of(const LinearProduct& call, int64_t row, int64_t rows, float* scratch) {
  const int64_t depth = call.depth, columns = call.columns;
  const int64_t whole = rows / kTileRows * kTileRows, rest = rows - whole;
  const float* const left = call.left + row * depth;
  float* const out = call.out + row * columns;
  if (rest) memcpy(scratch, left + whole * depth, static_cast<size_t>(rest * depth) * sizeof(float));
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    const float* const right = call.right + column / kColumns * kColumns * depth + column % kColumns;
    const float* const bias = call.bias + column;
    for (int64_t tile = 0; tile < whole; tile += kTileRows) {
      multiply_in_parts(left + tile * depth, depth, right, bias, call.zeros,
                        out + tile * columns + column, columns);
    }
    if (!rest) continue;
    alignas(64) float sums[kTileRows * kTileColumns];
    multiply_in_parts(scratch, depth, right, bias, call.zeros, sums, kTileColumns);
    for (int64_t r = 0; r < rest; ++r) {
      memcpy(out + (whole + r) * columns + column, sums + r * kTileColumns,
             static_cast<size_t>(kTileColumns) * sizeof(float));
    }
  }
}

// A block of the gradient of the weights, from `row` and `column` on.
void gradient_of(const LinearGradient& call, int64_t row, int64_t column, float* scratch) {
  const int64_t rows = call.columns - row < kGradientRows ? call.columns - row : kGradientRows;
  const int64_t left_columns = call.depth - column;
  const int64_t columns = left_columns < kGradientColumns ? left_columns : kGradientColumns;
  float* const left = scratch + kGradientRows * kGradientColumns;
  float* const bias = left + kPart * kGradientRows;
  memset(scratch, 0, static_cast<size_t>(gradient_floats()) * sizeof(float));
  for (int64_t token = 0; token < call.tokens; token += kPart) {
    const int64_t steps = call.tokens - token < kPart ? call.tokens - token : kPart;
    for (int64_t t = 0; t < steps; ++t) {
      const float* const from = call.grad + (token + t) * call.columns + row;
      if (rows == kGradientRows) {  // a copy of known size is not a call
        memcpy(left + t * kGradientRows, from, kGradientRows * sizeof(float));
      } else {
        memcpy(left + t * kGradientRows, from, static_cast<size_t>(rows) * sizeof(float));
      }
    }
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      const float* const right = call.x + (column + c) / kColumns * kColumns * call.tokens +
                                 token * kColumns + (column + c) % kColumns;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        alignas(64) float sums[kTileRows * kTileColumns];
        multiply_tile<SingleCells>(left + r, 1, steps, kGradientRows, 1, right, call.zeros, 0,
                                   sums, kTileColumns);
        add_tile(sums, scratch + r * kGradientColumns + c, kGradientColumns);
      }
    }
    if (column) continue;
    for (int64_t r = 0; r < kGradientRows; r += LANES) {
      Floats sum{};
      for (int64_t t = 0; t < steps; ++t) sum = sum + load(left + t * kGradientRows + r);
      store(bias + r, load(bias + r) + sum);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(call.weight + (row + r) * call.depth + column, scratch + r * kGradientColumns,
           static_cast<size_t>(columns) * sizeof(float));
  }
  if (!column) memcpy(call.bias + row, bias, static_cast<size_t>(rows) * sizeof(float));
}

constexpr LinearRows linear_rows = rows_of;
constexpr LinearBlock linear_gradient = gradient_of;
