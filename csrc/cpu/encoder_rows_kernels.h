// The kernels of encoder_rows.cpp, for one instruction set.
#include "rows_float.h"
#include "norm_row.h"
#include "gelu_block.h"

// Normalises a row of float32 and stores it as cells.
template <typename Cells>
void keep_normed(const float* x, const RowNorm& norm, int64_t channels, float* normed,
                 float* cells) {
  normalise(x, sum_of(x, channels), channels, norm.weight, norm.bias, norm.eps, normed);
  Cells::keep(normed, channels, cells, 0);
}

template <typename Cells>
void multilayer(const EncoderRowsFloat& call, const float* cells, int64_t rows, float* wide,
                float* branch) {
  const int64_t channels = call.channels, hidden = call.hidden;
  const int64_t stride = channels / Cells::PER_CELL, depth = hidden / Cells::PER_CELL;
  const int64_t wide_stride = kHiddenPart / Cells::PER_CELL;
  for (int64_t begin = 0; begin < hidden; begin += kHiddenPart) {
    const int64_t end = hidden < begin + kHiddenPart ? hidden : begin + kHiddenPart;
    multiply_rows<Cells>(cells, stride, rows, call.fc1, begin, end,
                         [&](int64_t r, int64_t column, const float* values, auto count) {
                           float out[kColumns];
                           gelu_block(values, count, out);
                           Cells::keep(out, count, wide + r * wide_stride, column - begin);
                         });
    const int64_t first = begin / Cells::PER_CELL, steps = (end - begin) / Cells::PER_CELL;
    const typename Cells::Settings settings(steps);
    for (int64_t column = 0; column < channels; column += kColumns) {
      const float* const weights = call.fc2.weights + column * depth + first * kColumns;
      for (int64_t tile = 0; tile < rows; tile += Cells::kRows) {
        for (int64_t j = 0; j < kColumns; j += kTileColumns) {
          float* const to = branch + tile * channels + column + j;
          multiply_tile<Cells>(wide + tile * wide_stride, wide_stride, 1, 0, steps, weights + j,
                               begin ? to : call.fc2.bias + column + j, begin ? channels : 0, to,
                               channels);
        }
      }
    }
  }
}

template <typename Cells>
void group_of(const EncoderRowsFloat& call, int64_t row, int64_t rows, float* scratch) {
  const int64_t channels = call.channels, stride = channels / Cells::PER_CELL;
  float* const stream = scratch;                         // (rows, channels), as the next two
  float* const branch = stream + kRowGroup * channels;
  float* const cells = branch + kRowGroup * channels;
  float* const wide = cells + kRowGroup * channels;      // (rows, kHiddenPart)
  float* const normed = wide + kRowGroup * kHiddenPart;  // one row
  for (int64_t r = 0; r < rows; ++r) {
    keep_cells<Cells>(call.mixed, call.dtype, (row + r) * channels, channels, false, normed,
                      cells + r * stride, 0);
  }
  multiply_rows<Cells>(cells, stride, rows, call.proj, 0, channels,
                       [&](int64_t r, int64_t column, const float* values, auto count) {
                         const float* DAFAST_RESTRICT x = call.x + (row + r) * channels + column;
                         const float* DAFAST_RESTRICT scale = call.ls1 + column;
                         float* DAFAST_RESTRICT to = stream + r * channels + column;
                         for (int64_t i = 0; i < count; ++i) to[i] = x[i] + values[i] * scale[i];
                       });
  for (int64_t r = 0; r < rows; ++r) {
    keep_normed<Cells>(stream + r * channels, call.norm2, channels, normed, cells + r * stride);
  }
  multilayer<Cells>(call, cells, rows, wide, branch);
  for (int64_t r = 0; r < rows; ++r) {
    float* DAFAST_RESTRICT x = stream + r * channels;
    const float* DAFAST_RESTRICT add = branch + r * channels;
    const float* DAFAST_RESTRICT scale = call.ls2;
    for (int64_t i = 0; i < channels; ++i) x[i] += add[i] * scale[i];
    if (call.tap) {
      normalise(x, sum_of(x, channels), channels, call.tap_norm.weight, call.tap_norm.bias,
                call.tap_norm.eps, normed);
      store(normed, channels, call.tap, call.dtype, (row + r) * channels);
    }
    if (call.next) keep_normed<Cells>(x, call.next_norm, channels, normed, cells + r * stride);
  }
  memcpy(call.stream + row * channels, stream, static_cast<size_t>(rows * channels) * sizeof(float));
  if (!call.next) return;
  multiply_rows<Cells>(cells, stride, rows, call.qkv, 0, call.qkv.columns,
                       [&](int64_t r, int64_t column, const float* values, auto count) {
                         store(values, count, call.next, call.dtype,
                               (row + r) * call.qkv.columns + column);
                       });
}

constexpr EncoderGroup encoder_group = group_of<SingleCells>;
#ifdef DAFAST_IN_AVX512_BF16
constexpr EncoderGroup encoder_group_pairs = group_of<PairCells>;
#else
constexpr EncoderGroup encoder_group_pairs = nullptr;
#endif
