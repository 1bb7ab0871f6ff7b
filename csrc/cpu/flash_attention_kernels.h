// The kernels of flash_attention.cpp, for one instruction set: attention of a block of queries.

#include "attention_tiles.h"

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
