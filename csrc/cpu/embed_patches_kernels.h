// The kernels of embed_patches.cpp, for one instruction set.
#include "rows_float.h"
#include "norm_row.h"

// Copies a patch to contiguous memory, in the order of the weights: channel, row, column.
inline void gather_patch(const EmbedPatches& call, int64_t image, int64_t patch, std::byte* to) {
  const int64_t size = call.dtype == Dtype::float32 ? 4 : 2, width = call.columns * call.side;
  const int64_t run = call.side * size, height = call.rows * call.side;
  const int64_t y = patch / call.columns * call.side, x = patch % call.columns * call.side;
  const auto* const from = static_cast<const std::byte*>(call.image);
  for (int64_t c = 0; c < call.channels; ++c) {
    const int64_t first = ((image * call.channels + c) * height + y) * width + x;
    for (int64_t row = 0; row < call.side; ++row, to += run) {
      memcpy(to, from + (first + row * width) * size, static_cast<size_t>(run));
    }
  }
}

template <typename Cells>
void embed(const EmbedPatches& call, int64_t first, int64_t count, float* scratch) {
  const int64_t depth = call.layer.depth, width = call.layer.columns;
  const int64_t padded = whole_panels(width), sequence = 1 + call.rows * call.columns;
  const int64_t stride = (depth + Cells::PER_CELL - 1) / Cells::PER_CELL;
  const int64_t widest = (depth > width ? depth : width) + kColumns;
  float* const gathered = scratch;
  float* const buffer = gathered + widest;                // one row
  float* const stream = buffer + widest;                  // (count, padded)
  float* const cells = stream + kRowGroup * padded;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t image = (first + r) / sequence, token = (first + r) % sequence;
    float* const to = cells + r * stride;
    if (token == 0) {  // the first token has no patch
      for (int64_t i = 0; i < stride; ++i) to[i] = 0.0f;
      continue;
    }
    gather_patch(call, image, token - 1, reinterpret_cast<std::byte*>(gathered));
    keep_cells<Cells>(gathered, call.dtype, 0, depth, false, buffer, to, 0);
  }
  multiply_rows<Cells>(cells, stride, count, call.layer, 0, width,
                       [&](int64_t r, int64_t column, const float* values, auto columns) {
                         const int64_t token = (first + r) % sequence;
                         const float* const position = call.positions + token * width + column;
                         float* const to = stream + r * padded + column;
                         for (int64_t i = 0; i < columns; ++i) {
                           to[i] = token ? position[i] + values[i] : position[i];
                         }
                       });
  for (int64_t r = 0; r < count; ++r) {
    float* const row = stream + r * padded;
    for (int64_t i = width; i < padded; ++i) row[i] = 0.0f;
    memcpy(call.tokens + (first + r) * width, row, static_cast<size_t>(width) * sizeof(float));
    normalise(row, sum_of(row, width), width, call.weight, call.bias, call.eps, buffer);
    store(buffer, width, call.normed, call.dtype, (first + r) * width);
  }
}

constexpr EmbedGroup embed_group = embed<SingleCells>;
#ifdef DAFAST_IN_AVX512_BF16
constexpr EmbedGroup embed_group_pairs = embed<PairCells>;
#else
constexpr EmbedGroup embed_group_pairs = nullptr;
#endif
