// Products of rows with packed weights, in float32 or bfloat16, for kernels files. The weights are in
// panels of kColumns columns, as weights_float.h describes.
#include "attention_tiles.h"

#ifdef DAFAST_IN_AMX
#include "tile_amx.h"
#endif

// Rows and vectors of a tile; its sums, a row of the weights and a value of the left side have to
// fit in the registers.
#if defined(DAFAST_IN_AVX512)
constexpr int kTileRows = 12, kTileVectors = 2;
#else
constexpr int kTileRows = ROWS, kTileVectors = VECTORS;
#endif
constexpr int64_t kTileColumns = kTileVectors * LANES;
static_assert(kRowUnit % kTileRows == 0 && kColumns % kTileColumns == 0, "whole tiles");

struct NoSettings {
  explicit NoSettings(int64_t) {}
};

// The storage of a row of the left side: float32, or pairs of bfloat16. A function that calls
// multiply_tile has `Settings` of the same number of steps.
struct SingleCells : Float32 {
  using Settings = NoSettings;
  static constexpr int kRows = kTileRows;
  // Writes values from the place `at` of a row on.
  static void keep(const float* values, int64_t count, float* cells, int64_t at) {
    memcpy(cells + at, values, static_cast<size_t>(count) * sizeof(float));
  }
};

#ifdef DAFAST_IN_AVX512_BF16
struct PairCells {
#ifdef DAFAST_IN_AMX
  using Settings = TileSettings;
  static constexpr int kRows = 16;
  static_assert(kRows == kMostRows && kRowGroup % kRows == 0, "whole tiles");
#else
  using Settings = NoSettings;
  static constexpr int kRows = kTileRows;
#endif
  static constexpr int PER_CELL = 2;
  static Floats multiply_add(float a, const float* b, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)load(b));
  }
  static void keep(const float* values, int64_t count, float* cells, int64_t at) {
    auto* const to = reinterpret_cast<uint16_t*>(cells) + at;
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 mask = static_cast<__mmask16>(count - i < 16 ? (1 << (count - i)) - 1 : 0xffff);
      const __m512 x = _mm512_maskz_loadu_ps(mask, values + i);
      _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
  }
};
#endif

// out = start + left * right for a tile. A row of the left side is `runs` runs of `steps` cells,
// `run_stride` cells apart (for a convolution, the rows of its window). `start_stride` is 0 if all
// rows start from the same values.
//
// Never inlined, because otherwise GCC keeps the sums in memory.
template <typename Cells>
__attribute__((noinline)) void multiply_tile(const float* left, int64_t row_stride, int64_t runs,
                                             int64_t run_stride, int64_t steps, const float* right,
                                             const float* start, int64_t start_stride, float* out,
                                             int64_t out_stride) {
  Floats sums[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < kTileVectors; ++w) sums[r][w] = load(start + r * start_stride + w * LANES);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const float* a = left + run * run_stride;
    for (int64_t step = 0; step < steps; ++step, ++a, right += kColumns) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
        for (int w = 0; w < kTileVectors; ++w) {
          sums[r][w] = Cells::multiply_add(a[r * row_stride], right + w * LANES, sums[r][w]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < kTileVectors; ++w) store(out + r * out_stride + w * LANES, sums[r][w]);
  }
}

#ifdef DAFAST_IN_AMX
// The same, for 16 rows.
template <>
__attribute__((noinline)) void multiply_tile<PairCells>(
    const float* left, int64_t row_stride, int64_t runs, int64_t run_stride, int64_t steps,
    const float* right, const float* start, int64_t start_stride, float* out, int64_t out_stride) {
  static_assert(kTileColumns == 32, "two tiles of sums");
  constexpr int kPitch = sizeof(float) * kColumns;
  // GCC 12 does not know that the instructions read memory.
  asm volatile("" : : : "memory");
  _tile_loadd(0, start, start_stride * sizeof(float));
  _tile_loadd(1, start + 16, start_stride * sizeof(float));
#define DAFAST_ADD_BLOCK(x, y)                    \
  _tile_loadd(x, a, row_stride * sizeof(float));  \
  _tile_loadd(y, right, kPitch);                  \
  _tile_dpbf16ps(0, x, y);                        \
  _tile_loadd(y, right + 16, kPitch);             \
  _tile_dpbf16ps(1, x, y);
  for (int64_t run = 0; run < runs; ++run) {
    const float* a = left + run * run_stride;
    for (int64_t block = 0; block < steps / kTileSteps; ++block) {
      DAFAST_ADD_BLOCK(4, 5)
      a += kTileSteps, right += kTileSteps * kColumns;
    }
    if (const int64_t rest = steps % kTileSteps) {
      DAFAST_ADD_BLOCK(6, 7)
      right += rest * kColumns;
    }
  }
#undef DAFAST_ADD_BLOCK
  _tile_stored(0, out, out_stride * sizeof(float));
  _tile_stored(1, out + 16, out_stride * sizeof(float));
}
#endif
