// Products of small matrices and the exponential for the kernels of attention, for one instruction
// set and any width of vectors. Included by the kernels files that each_isa.h compiles. The first
// part defines for each set
//   LANES, ROWS, VECTORS     floats in a vector; rows and vectors of a tile of a product
//   Floats                   that vector, with + - * and comparisons
//   fraction(x)              x - floor(x), for x up to 0
//   scaled(y, x)             y 2^floor(x), for x up to 0: 0 for -infinity, NaN if y is
//   largest(x)               of the lanes

#if defined(DAFAST_IN_AVX512)

// 24 sums, 4 vectors of the right side, 1 of the left: 29 of 32 registers.
constexpr int LANES = 16, ROWS = 6, VECTORS = 4;
using Floats = __m512;

inline Floats fraction(Floats x) { return _mm512_reduce_ps(x, 0x09); }  // 9: floor, no exceptions
inline Floats scaled(Floats y, Floats x) { return _mm512_scalef_ps(y, x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

#else

#if defined(DAFAST_IN_AVX2)
// 12 sums, 2 vectors of the right side, 1 of the left: 15 of 16 registers.
constexpr int LANES = 8, ROWS = 6, VECTORS = 2;
using Floats = __m256;
typedef int Ints __attribute__((vector_size(32)));
#define DAFAST_CONVERT __builtin_convertvector
#elif defined(__GNUC__) || defined(__clang__)
// Vectors of 4, which all 64-bit processors have.
constexpr int LANES = 4, ROWS = 6, VECTORS = 2;
typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
#define DAFAST_CONVERT __builtin_convertvector
#else
constexpr int LANES = 1, ROWS = 4, VECTORS = 2;
using Floats = float;
using Ints = int;
#define DAFAST_CONVERT(value, type) static_cast<type>(value)
#endif

// floor(x) + 127, the exponent of 2^floor(x); x + 127 may round up to the next integer.
inline Ints exponent(Floats x) {
  const Floats biased = x + 127.0f;
  return DAFAST_CONVERT(biased < 1.0f ? 1.0f + Floats{} : biased, Ints);
}

inline Floats fraction(Floats x) { return x - (DAFAST_CONVERT(exponent(x), Floats) - 127.0f); }

inline Floats scaled(Floats y, Floats x) {
  const Ints bits = exponent(x) << 23;
  Floats power;
  memcpy(&power, &bits, sizeof power);
  return x < -126.0f ? Floats{} : y * power;
}

inline float largest(Floats x) {
  float lanes[LANES];
  memcpy(lanes, &x, sizeof lanes);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      if (lanes[i + half] > lanes[i]) lanes[i] = lanes[i + half];
    }
  }
  return lanes[0];
}

#undef DAFAST_CONVERT
#endif

inline Floats load(const float* from) {
  Floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }

// 2^x for x up to 0, by the polynomials of least relative error on [0, 1). In float the error is
// 1.5e-7 for degree 5 and 7.5e-5 for degree 3.
template <int DEGREE>
inline Floats power_of_two(Floats x) {
  static_assert(DEGREE == 3 || DEGREE == 5, "no such polynomial");
  const Floats f = fraction(x);
  if constexpr (DEGREE == 3) {
    const Floats high = 0x1.3f96a4p-4f * f + 0x1.cefc4cp-3f;
    return scaled((high * f + 0x1.64444cp-1f) * f + 0x1.fff632p-1f, x);
  } else {
    const Floats high = (0x1.ec320ap-10f * f + 0x1.26900cp-7f) * f + 0x1.c95446p-5f;
    return scaled(((high * f + 0x1.ebd5a8p-3f) * f + 0x1.62e4f6p-1f) * f + 0x1.fffffep-1f, x);
  }
}

// Cells that are floats.
struct Float32 {
  static constexpr int PER_CELL = 1, DEGREE = 5;
  static Floats multiply_add(float a, const float* b, Floats sum) { return sum + a * load(b); }
  static void store_probabilities(float* row, int64_t i, Floats p) { store(row + i, p); }
};

// c = a b, or c = factors * c + a b with a factor for each row; a tile of ROWS rows.
template <typename Cells, int WIDTH, bool ADD>
void product(const float* a, int64_t stride_a, const float* b, int64_t steps, float* c,
             int64_t stride_c, const float* factors) {
  Floats sums[ROWS][WIDTH];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < WIDTH; ++w) {
      sums[r][w] = ADD ? factors[r] * load(c + r * stride_c + w * LANES) : Floats{};
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int w = 0; w < WIDTH; ++w) {
        sums[r][w] = Cells::multiply_add(a[r * stride_a + step], b + w * LANES, sums[r][w]);
      }
    }
    b += WIDTH * LANES;
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < WIDTH; ++w) store(c + r * stride_c + w * LANES, sums[r][w]);
  }
}

// The same over all panels of the right side, `panel_stride` floats apart; `columns` is a multiple
// of LANES.
template <typename Cells, bool ADD>
void product_of_panels(const float* a, int64_t stride_a, const float* b, int64_t panel_stride,
                       int64_t steps, int64_t columns, float* c, int64_t stride_c,
                       const float* factors) {
  constexpr int64_t PANEL = VECTORS * LANES;
  for (; columns >= PANEL; columns -= PANEL, b += panel_stride, c += PANEL) {
    product<Cells, VECTORS, ADD>(a, stride_a, b, steps, c, stride_c, factors);
  }
  const int left = static_cast<int>(columns / LANES);
  if constexpr (VECTORS > 3) {
    if (left == 3) product<Cells, 3, ADD>(a, stride_a, b, steps, c, stride_c, factors);
  }
  if constexpr (VECTORS > 2) {
    if (left == 2) product<Cells, 2, ADD>(a, stride_a, b, steps, c, stride_c, factors);
  }
  if (left == 1) product<Cells, 1, ADD>(a, stride_a, b, steps, c, stride_c, factors);
}
