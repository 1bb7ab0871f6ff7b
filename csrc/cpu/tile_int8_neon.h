// The part of tile_int8.h for NEON: SDOT multiplies four bytes at a time, USMMLA eight of two rows
// and two columns.

constexpr int64_t kStrip = 16;  // columns: 24 sums, in a tile of six rows

#ifdef DAFAST_IN_I8MM

// Levels of two rows, and bytes of two columns in two steps, eight each.
inline uint8x16_t levels_of(const Level* first, const Level* second, bool both_steps) {
  if (both_steps) return vcombine_u8(vld1_u8(first), vld1_u8(second));
  uint8_t part[16] = {};
  memcpy(part, first, 4);
  memcpy(part + 8, second, 4);
  return vld1q_u8(part);
}

// Adds the products of one step, or of two (BOTH), to the sums of three pairs of rows and eight of
// columns.
template <bool BOTH>
inline __attribute__((always_inline)) void add_steps(int32x4_t (&sums)[3][8], const Level* four,
                                                     int64_t row_stride, const int8_t* right,
                                                     const int8_t* next) {
  uint8x16_t rows[3];
#pragma GCC unroll 3
  for (int p = 0; p < 3; ++p) {
    const Level* const first = four + 2 * p * row_stride;
    rows[p] = levels_of(first, first + row_stride, BOTH);
  }
#pragma GCC unroll 4
  for (int h = 0; h < 4; ++h) {
    const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(right + 16 * h));
    const int32x4_t b = BOTH ? vreinterpretq_s32_s8(vld1q_s8(next + 16 * h)) : vdupq_n_s32(0);
    const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(a, b));
    const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(a, b));
#pragma GCC unroll 3
    for (int p = 0; p < 3; ++p) {
      sums[p][2 * h] = vusmmlaq_s32(sums[p][2 * h], rows[p], low);
      sums[p][2 * h + 1] = vusmmlaq_s32(sums[p][2 * h + 1], rows[p], high);
    }
  }
}

// A strip of columns of a tile of six rows.
__attribute__((noinline)) inline void multiply_strip(
    const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride, int64_t steps,
    const int8_t* right, int64_t right_stride, const int32_t* start, int32_t* out,
    int64_t out_stride) {
  int32x4_t sums[3][8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const int32x2_t pair = vld1_s32(start + 2 * j);
    for (int p = 0; p < 3; ++p) sums[p][j] = vcombine_s32(pair, pair);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    int64_t step = 0;
    for (; step + 2 <= steps; step += 2, four += 8, right += 2 * right_stride) {
      add_steps<true>(sums, four, row_stride, right, right + right_stride);
    }
    if (step < steps) {
      add_steps<false>(sums, four, row_stride, right, right);
      right += right_stride;
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < 3; ++p) {
    int32_t* const first = out + 2 * p * out_stride;
    int32_t* const second = first + out_stride;
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h) {
      const int32x4_t a = sums[p][2 * h], b = sums[p][2 * h + 1];
      vst1q_s32(first + 4 * h, vcombine_s32(vget_low_s32(a), vget_low_s32(b)));
      vst1q_s32(second + 4 * h, vcombine_s32(vget_high_s32(a), vget_high_s32(b)));
    }
  }
}

// The sums of a strip begin with these numbers.
inline void first_sums(int64_t, const int8_t*, int64_t, const int32_t* start, int32_t* out) {
  put(out, ints_at(start));
}

#else

// As with USMMLA.
__attribute__((noinline)) inline void multiply_strip(
    const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride, int64_t steps,
    const int8_t* right, int64_t right_stride, const int32_t* start, int32_t* out,
    int64_t out_stride) {
  int32x4_t sums[6][4];
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    for (int j = 0; j < 4; ++j) sums[r][j] = vld1q_s32(start + 4 * j);
  }
  for (int64_t run = 0; run < runs; ++run) {
    const Level* four = left + run * run_stride;
    for (int64_t step = 0; step < steps; ++step, four += 4, right += right_stride) {
      const int8x16_t a = vld1q_s8(right), b = vld1q_s8(right + 16);
      const int8x16_t c = vld1q_s8(right + 32), d = vld1q_s8(right + 48);
#pragma GCC unroll 6
      for (int r = 0; r < 6; ++r) {
        int32_t bytes;
        memcpy(&bytes, four + r * row_stride, sizeof bytes);
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
        sums[r][0] = vdotq_s32(sums[r][0], a, x);
        sums[r][1] = vdotq_s32(sums[r][1], b, x);
        sums[r][2] = vdotq_s32(sums[r][2], c, x);
        sums[r][3] = vdotq_s32(sums[r][3], d, x);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    for (int j = 0; j < 4; ++j) vst1q_s32(out + r * out_stride + 4 * j, sums[r][j]);
  }
}

// The sums of a strip begin with `start` and the products of 128, which the levels lack.
inline void first_sums(int64_t steps, const int8_t* right, int64_t right_stride,
                       const int32_t* start, int32_t* out) {
  Ints16 products = all(0);
  const int8x16_t less = vdupq_n_s8(-128);
  for (int64_t step = 0; step < steps; ++step, right += right_stride) {
    for (int j = 0; j < 4; ++j) {
      products.q[j] = vdotq_s32(products.q[j], vld1q_s8(right + 16 * j), less);
    }
  }
  put(out, sub(ints_at(start), products));
}

#endif

// As in AVX-512.
template <int ROWS, int WIDTH>
void multiply_tile(const Level* left, int64_t row_stride, int64_t runs, int64_t run_stride,
                   int64_t steps, const int8_t* right, const int32_t* start, int32_t* out) {
  static_assert(ROWS % 6 == 0, "whole tiles");
  for (int64_t column = 0; column < 16 * WIDTH; column += kStrip) {
    int32_t first[kStrip];
    first_sums(runs * steps, right + 4 * column, 64 * WIDTH, start + column, first);
    for (int r = 0; r < ROWS; r += 6) {
      multiply_strip(left + r * row_stride, row_stride, runs, run_stride, steps,
                     right + 4 * column, 64 * WIDTH, first, out + r * 16 * WIDTH + column,
                     16 * WIDTH);
    }
  }
}
