// The kernels of conv3x3_packed.cpp, for one instruction set.
//
// The rows of the input that a strip of the result needs are copied with borders of zeros. The
// pixels of a row are contiguous, so the window of a pixel is three runs of 3 C values, and a few
// pixels times the columns of a panel are a tile of a product. With stride 1 the tiles continue from
// one row into the next: the two pixels between them, whose windows have parts of both rows, are
// computed and dropped.
#include "rows_float.h"

// Copies the rows [first, last) of image b as cells; rows outside of the image are zeros.
template <typename Cells>
void keep_rows(const Conv3x3Packed& call, int64_t b, int64_t first, int64_t last, float* buffer,
               float* cells) {
  const int64_t length = call.width * call.channels, pitch = row_cells(call);
  const int64_t border = pixel_cells(call);
  const int64_t inner = pitch - 2 * border;
  for (int64_t row = first; row < last; ++row, cells += pitch) {
    const bool outside = row < 0 || row >= call.height;
    memset(cells, 0, static_cast<size_t>(outside ? pitch : border) * sizeof(float));
    if (outside) continue;
    keep_cells<Cells>(call.x, call.dtype, (b * call.height + row) * length, length,
                      call.relu_input, buffer, cells, border);
    memset(cells + border + inner, 0, static_cast<size_t>(border) * sizeof(float));
  }
}

// Adds the summands of a pixel to its values and stores them at `at`.
template <typename Count>
inline void finish_pixel(const Conv3x3Packed& call, float* DAFAST_RESTRICT values, int64_t at,
                         Count count) {
  if (call.relu) {
    for (int64_t i = 0; i < kColumns; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
  }
  for (const void* more : call.add) {
    if (!more) continue;
    float buffer[kColumns];
    const float* DAFAST_RESTRICT from = load(more, call.dtype, at, 1, count, buffer);
    for (int64_t i = 0; i < kColumns; ++i) values[i] += from[i];
  }
  store(values, count, call.out, call.dtype, at);
}

template <typename Cells>
void strip_of(const Conv3x3Packed& call, int64_t b, int64_t y, int64_t rows, float* scratch) {
  const int64_t pixel = pixel_cells(call), pitch = row_cells(call), stride = call.stride;
  const int64_t columns = call.layer.columns, depth = 9 * pixel;
  float* const buffer = scratch + conv_floats(call) - call.width * call.channels - kColumns;
  keep_rows<Cells>(call, b, y * stride - 1, (y + rows - 1) * stride + 2, buffer, scratch);
  // Pixels of a segment, and places between the starts of two rows in it.
  const bool together = stride == 1;
  const int64_t step = together ? call.width + 2 : call.out_width;
  const int64_t segments = together ? 1 : rows;
  const int64_t pixels = together ? (rows - 1) * step + call.out_width : call.out_width;
  const typename Cells::Settings settings(3 * pixel);
  alignas(64) float sums[Cells::kRows * kColumns];
  for (int64_t column = 0; column < columns; column += kColumns) {
    const int64_t count = columns - column < kColumns ? columns - column : kColumns;
    for (int64_t segment = 0; segment < segments; ++segment) {
      const float* const left = scratch + segment * stride * pitch;
      int64_t row = segment, x = 0;  // of the next pixel
      for (int64_t tile = 0; tile < pixels; tile += Cells::kRows) {
        for (int64_t j = 0; j < kColumns; j += kTileColumns) {
          multiply_tile<Cells>(left + tile * stride * pixel, stride * pixel, 3, pitch, 3 * pixel,
                               call.layer.weights + column * depth + j,
                               call.layer.bias + column + j, 0, sums + j, kColumns);
        }
        for (int64_t p = 0; p < Cells::kRows && tile + p < pixels; ++p, ++x) {
          if (x == step) ++row, x = 0;
          if (x >= call.out_width) continue;
          const int64_t at =
              ((b * call.out_height + y + row) * call.out_width + x) * columns + column;
          if (count == kColumns) {
            finish_pixel(call, sums + p * kColumns, at, WholePanel{});
          } else {
            finish_pixel(call, sums + p * kColumns, at, count);
          }
        }
      }
    }
  }
}

constexpr PackedStrip packed_strip = strip_of<SingleCells>;
#ifdef DAFAST_IN_AVX512_BF16
constexpr PackedStrip packed_strip_pairs = strip_of<PairCells>;
#else
constexpr PackedStrip packed_strip_pairs = nullptr;
#endif
