// The kernels of flash_attention.cpp, for one instruction set: attention of a block of queries, for
// any width of vectors. The first part defines for each set
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

// Turns a row of logits into probabilities, up to a factor that later blocks of keys change.
// Returns the factor for the results of the blocks before this one.
template <typename Cells>
float exponentiate(float* row, int64_t keys, int64_t padded, float scale, float& maximum,
                   float& sum) {
  for (int64_t i = keys; i < padded; ++i) row[i] = -INFINITY;
  Floats most = load(row);
  for (int64_t i = LANES; i < padded; i += LANES) {
    const Floats logits = load(row + i);
    most = logits > most ? logits : most;  // in this order it is one instruction
  }
  const float block = scale * largest(most);
  const float before = maximum;
  maximum = block > before ? block : before;
  const float base = maximum == -INFINITY ? 0.0f : maximum;  // all logits are -infinity
  Floats sums{};
  for (int64_t i = 0; i < padded; i += LANES) {
    const Floats p = power_of_two<Cells::DEGREE>(scale * load(row + i) - base);
    sums += p;
    Cells::store_probabilities(row, i, p);
  }
  float lanes[LANES], added = 0.0f;
  store(lanes, sums);
  for (int i = 0; i < LANES; ++i) added += lanes[i];
  store(lanes, power_of_two<Cells::DEGREE>(Floats{} + (before - base)));
  const float factor = lanes[0];
  sum = factor * sum + added;
  return factor;
}

constexpr int64_t KEYS = 768;              // of a block
constexpr int64_t STRIDE = KEYS + 16;      // of a row of logits: not a power of two
constexpr int64_t SCRATCH = ROWS * STRIDE;

template <typename Cells>
void attend(const AttentionBlock& block) {
  const int64_t depth = block.head_dim / Cells::PER_CELL;
  const int64_t key_cells = (block.keys + Cells::PER_CELL - 1) / Cells::PER_CELL;
  const int64_t head_dim = block.head_dim;
  constexpr int64_t PANEL = VECTORS * LANES;
  static_assert(KEYS % PANEL == 0);
  float maxima[kAttentionRows], sums[kAttentionRows];
  for (int64_t r = 0; r < block.rows; ++r) maxima[r] = -INFINITY, sums[r] = 0.0f;
  for (int64_t i = 0; i < block.rows * head_dim; ++i) block.out[i] = 0.0f;

  for (int64_t first = 0; first < block.keys; first += KEYS) {
    const int64_t left = block.keys - first;
    const int64_t keys = left < KEYS ? left : KEYS;
    const int64_t padded = (keys + LANES - 1) / LANES * LANES;
    const int64_t first_cell = first / Cells::PER_CELL;
    const int64_t cells = (keys + Cells::PER_CELL - 1) / Cells::PER_CELL;
    for (int64_t r = 0; r < block.rows; r += ROWS) {
      product_of_panels<Cells, false>(block.q + r * depth, depth, block.k + first * depth,
                                      PANEL * depth, depth, padded, block.scratch, STRIDE, nullptr);
      float factors[ROWS];
      for (int i = 0; i < ROWS; ++i) {
        factors[i] = exponentiate<Cells>(block.scratch + i * STRIDE, keys, padded, block.scale,
                                         maxima[r + i], sums[r + i]);
      }
      // A panel of V holds the cells of all keys.
      float* out = block.out + r * head_dim;
      for (int64_t d = 0; d < head_dim; d += PANEL) {
        const int64_t columns = head_dim - d < PANEL ? head_dim - d : PANEL;
        product_of_panels<Cells, true>(block.scratch, STRIDE,
                                       block.v + d * key_cells + first_cell * columns, 0, cells,
                                       columns, out + d, head_dim, factors);
      }
    }
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    const float inverse = 1.0f / sums[r];
    for (int64_t d = 0; d < head_dim; ++d) block.out[r * head_dim + d] *= inverse;
  }
}

#ifdef DAFAST_IN_AVX512_BF16

constexpr bool kPairs = true;  // bfloat16 is multiplied as it is, two to a cell

struct BFloat16 {
  static constexpr int PER_CELL = 2, DEGREE = 3;
  static Floats multiply_add(float a, const float* b, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)load(b));
  }
  // In place: the result has half the bytes, so it overwrites only values that were read.
  static void store_probabilities(float* row, int64_t i, Floats p) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(p);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2), halves);
  }
};

#else

constexpr bool kPairs = false;
using BFloat16 = Float32;

#endif

AttentionKernel kernel_for(bool bfloat16) {
  const bool pairs = kPairs && bfloat16;
  return {pairs, ROWS, LANES, VECTORS * LANES, SCRATCH,
          pairs ? attend<BFloat16> : attend<Float32>};
}
