// Products of int8 in AVX-512 with VNNI, for kernels files, within DAFAST_IN_AVX512.

// sum += products of unsigned x and signed y, four to each of the 16 sums. Not the intrinsic: GCC 12
// copies the sum for it, and tiles of sums no longer fit in the registers.
inline void add_products(__m512i& sum, __m512i x, __m512i y) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
}

// out = start + left * right for a tile of ROWS rows and 16 WIDTH columns, int32. A row of the left
// side is `runs` runs of `steps` times four bytes, `run_stride` bytes apart (for a convolution, the
// rows of its window). A step of the right side has four bytes of each column. `start` has a number
// for each column.
//
// The loops are written out and the function is never inlined, because otherwise GCC keeps the sums
// in memory, which halves the speed.
template <int ROWS, int WIDTH>
__attribute__((noinline)) void multiply_tile(const uint8_t* left, int64_t row_stride, int64_t runs,
                                             int64_t run_stride, int64_t steps,
                                             const int8_t* right, const int32_t* start,
                                             int32_t* out) {
  constexpr int kSums = ROWS * WIDTH;
  __m512i sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_loadu_si512(start + 16 * (i % WIDTH));
  for (int64_t run = 0; run < runs; ++run) {
    const uint8_t* four = left + run * run_stride;
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
