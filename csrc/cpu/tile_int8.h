// Products of int8, for kernels files, after vectors16.h: tiles in AMX, four bytes in an instruction
// of AVX-512, AVX-VNNI or ARM, two numbers of 16 bits in one of AVX2. All are exact.
//
// A function that calls multiply_tile has a `TileSettings` of the same number of steps.

#ifdef DAFAST_IN_AMX
#include "tile_amx.h"

constexpr int64_t kRowTile = 16, kWideTile = 16;

// As in AVX-512, for 16 rows and up to 64 columns.
template <int ROWS, int WIDTH>
__attribute__((noinline)) void multiply_tile(const Level* left, int64_t row_stride, int64_t runs,
                                             int64_t run_stride, int64_t steps,
                                             const int8_t* right, const int32_t* start,
                                             int32_t* out) {
  static_assert(ROWS == 16 && WIDTH <= 4, "four tiles of sums");
  constexpr int kPitch = kTileBytes * WIDTH;  // of the right side and of the result
  // GCC 12 does not know that the instructions read memory. 0: all rows are the same.
  asm volatile("" : : : "memory");
  _tile_loadd(0, start, 0);
  if constexpr (WIDTH > 1) _tile_loadd(1, start + 16, 0);
  if constexpr (WIDTH > 2) _tile_loadd(2, start + 32, 0);
  if constexpr (WIDTH > 3) _tile_loadd(3, start + 48, 0);
// Adds the products of a block to the sums.
#define DAFAST_ADD_PRODUCTS(sum, x, y)                 \
  if constexpr (WIDTH > sum) {                         \
    _tile_loadd(y, right + kTileBytes * sum, kPitch);  \
    _tile_dpbusd(sum, x, y);                           \
  }
#define DAFAST_ADD_BLOCK(x, y)                                         \
  _tile_loadd(x, four, row_stride);                                    \
  DAFAST_ADD_PRODUCTS(0, x, y) DAFAST_ADD_PRODUCTS(1, x, y)            \
  DAFAST_ADD_PRODUCTS(2, x, y) DAFAST_ADD_PRODUCTS(3, x, y)
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    for (int64_t block = 0; block < steps / kTileSteps; ++block) {
      DAFAST_ADD_BLOCK(4, 5)
      four += 4 * kTileSteps, right += kTileSteps * kPitch;
    }
    if (const int64_t rest = steps % kTileSteps) {
      DAFAST_ADD_BLOCK(6, 7)
      right += rest * kPitch;
    }
  }
#undef DAFAST_ADD_BLOCK
#undef DAFAST_ADD_PRODUCTS
  _tile_stored(0, out, kPitch);
  if constexpr (WIDTH > 1) _tile_stored(1, out + 16, kPitch);
  if constexpr (WIDTH > 2) _tile_stored(2, out + 32, kPitch);
  if constexpr (WIDTH > 3) _tile_stored(3, out + 48, kPitch);
}

#else

constexpr int64_t kRowTile = 12;  // rows of a tile of 2 vectors
constexpr int64_t kWideTile = 6;  // of one of up to 4: 24 sums, 4 of the right side, 1 of the left

struct TileSettings {
  explicit TileSettings(int64_t) {}
};

#ifdef DAFAST_IN_AVX512

// sum += products of unsigned x and signed y, four to each of the 16 sums. Not the intrinsic: GCC 12
// copies the sum for it, and tiles of sums no longer fit in the registers.
inline void add_products(__m512i& sum, __m512i x, __m512i y) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
}

// out = start + left * right for a tile of ROWS rows and 16 WIDTH columns, int32. A row of the left
// side is `runs` runs of `steps` times four levels, `run_stride` levels apart (for a convolution, the
// rows of its window). A step of the right side has four bytes of each column. `start` has a number
// for each column.
//
// The loops are written out and the function is never inlined, because otherwise GCC keeps the sums
// in memory, which halves the speed.
template <int ROWS, int WIDTH>
__attribute__((noinline)) void multiply_tile(const Level* left, int64_t row_stride, int64_t runs,
                                             int64_t run_stride, int64_t steps,
                                             const int8_t* right, const int32_t* start,
                                             int32_t* out) {
  constexpr int kSums = ROWS * WIDTH;
  __m512i sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_loadu_si512(start + 16 * (i % WIDTH));
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    for (int64_t step = 0; step < steps; ++step, four += 4, right += 64 * WIDTH) {
      const __m512i a = _mm512_loadu_si512(right);
      const __m512i b = _mm512_loadu_si512(right + (WIDTH > 1 ? 64 : 0));
      const __m512i c = _mm512_loadu_si512(right + (WIDTH > 2 ? 128 : 0));
      const __m512i d = _mm512_loadu_si512(right + (WIDTH > 3 ? 192 : 0));
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r) {
        int32_t bytes;
        memcpy(&bytes, four + r * row_stride, sizeof bytes);
        const __m512i x = _mm512_set1_epi32(bytes);
        add_products(sums[WIDTH * r], x, a);
        if constexpr (WIDTH > 1) add_products(sums[WIDTH * r + 1], x, b);
        if constexpr (WIDTH > 2) add_products(sums[WIDTH * r + 2], x, c);
        if constexpr (WIDTH > 3) add_products(sums[WIDTH * r + 3], x, d);
      }
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) _mm512_storeu_si512(out + 16 * i, sums[i]);
}

#elif defined(DAFAST_IN_DOTPROD)
#include "tile_int8_neon.h"
#else

#ifdef DAFAST_IN_AVX_VNNI

// sum += products of unsigned x and signed y, four to each of the 8 sums. Not the intrinsic, as in
// AVX-512.
inline void add_products(__m256i& sum, __m256i x, __m256i y) {
#ifdef DAFAST_EMULATED
  asm("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
#endif
}

constexpr int64_t kStrip = 16;  // columns: 12 sums, 2 vectors of the right side and 1 of the left

// A strip of columns of a tile of six rows.
__attribute__((noinline)) inline void multiply_strip(
    const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride, int64_t steps,
    const int8_t* right, int64_t right_stride, const int32_t* start, int32_t* out,
    int64_t out_stride) {
  __m256i sums[6][2];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) sums[r][0] = load_ints(start), sums[r][1] = load_ints(start + 8);
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    for (int64_t step = 0; step < steps; ++step, four += 4, right += right_stride) {
      const __m256i a = load_ints(right), b = load_ints(right + 32);
#pragma GCC unroll 6
      for (int r = 0; r < 6; ++r) {
        int32_t bytes;
        memcpy(&bytes, four + r * row_stride, sizeof bytes);
        const __m256i x = _mm256_set1_epi32(bytes);
        add_products(sums[r][0], x, a);
        add_products(sums[r][1], x, b);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    store_ints(out + r * out_stride, sums[r][0]);
    store_ints(out + r * out_stride + 8, sums[r][1]);
  }
}

#else

// Adds the products of four levels with the bytes of four columns, a, and of four more, b; two to
// each sum. Not intrinsics: GCC 12 loads all rows of a tile first, and its sums no longer fit in the
// registers.
inline void add_products(__m256i& sum_a, __m256i& sum_b, const Level* levels, __m256i a,
                         __m256i b) {
  __m256i x, product;
  asm("vpbroadcastq %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpaddd %3, %0, %0\n\t"
      "vpmaddwd %6, %2, %2\n\tvpaddd %2, %1, %1"
      : "+x"(sum_a), "+x"(sum_b), "=&x"(x), "=&x"(product)
      : "m"(*reinterpret_cast<const Level(*)[4]>(levels)), "x"(a), "x"(b));
}

constexpr int64_t kStrip = 8;  // columns

// A strip of columns of a tile of six rows; the sums of a step are those of two products, which are added
// at the end: 12 sums, 2 vectors of the right side, 1 of the left and 1 product in 16 registers.
__attribute__((noinline)) inline void multiply_strip(
    const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride, int64_t steps,
    const int8_t* right, int64_t right_stride, const int32_t* start, int32_t* out,
    int64_t out_stride) {
  __m256i sums[6][2];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    for (int64_t step = 0; step < steps; ++step, four += 4, right += right_stride) {
      const auto* const at = reinterpret_cast<const __m128i*>(right);
      const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(at));
      const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1));
#pragma GCC unroll 6
      for (int r = 0; r < 6; ++r) {
        add_products(sums[r][0], sums[r][1], four + r * row_stride, a, b);
      }
    }
  }
  const __m256i first = load_ints(start);
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    const __m256i pairs = _mm256_hadd_epi32(sums[r][0], sums[r][1]);
    store_ints(out + r * out_stride,
               _mm256_add_epi32(first, _mm256_permute4x64_epi64(pairs, 0xd8)));
  }
}

#endif

// As in AVX-512.
template <int ROWS, int WIDTH>
void multiply_tile(const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride,
                   int64_t steps, const int8_t* right, const int32_t* start, int32_t* out) {
  static_assert(ROWS % 6 == 0, "whole tiles");
  for (int64_t column = 0; column < 16 * WIDTH; column += kStrip) {
    for (int r = 0; r < ROWS; r += 6) {
      multiply_strip(left + r * row_stride, row_stride, runs, run_stride, steps,
                     right + 4 * column, 64 * WIDTH, start + column,
                     out + r * 16 * WIDTH + column, 16 * WIDTH);
    }
  }
}

#endif
#endif
