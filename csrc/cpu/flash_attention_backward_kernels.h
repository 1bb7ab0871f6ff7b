// The kernels of flash_attention_backward.cpp, for one instruction set: the gradients of one head.
//
// A block of queries at a time, with the logits of all keys, so that the softmax needs nothing from
// the forward:
//   p  = softmax(scale q k^T)         dv += p^T g
//   dp = g v^T                        ds  = scale p (dp - sum(p dp))
//   dq = ds k                         dk += ds^T q

#include "attention_tiles.h"

constexpr int64_t QUERIES = 24;  // of a block: a multiple of ROWS
static_assert(QUERIES % ROWS == 0);

inline int64_t rounded_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Floats in a row of logits: all keys, padded for tiles of LANES columns and of ROWS rows; whole
// cache lines, and rarely a power of two.
inline int64_t row_of_logits(int64_t keys) {
  return rounded_up(keys + ROWS + LANES, 16) + 16;
}

int64_t gradient_scratch(int64_t keys, int64_t head_dim) {
  const int64_t columns = rounded_up(keys, LANES), rows = rounded_up(keys, ROWS);
  return head_dim * (2 * columns + keys + 2 * rows + 3 * QUERIES) +
         2 * QUERIES * row_of_logits(keys);
}

template <typename T>
inline void widen(const T* DAFAST_RESTRICT from, int64_t count, float* DAFAST_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

template <typename T>
inline void narrow(const float* DAFAST_RESTRICT from, int64_t count, T* DAFAST_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

// Rows of head_dim floats, followed by zeros up to `padded` rows.
template <typename T>
void load_rows(const T* from, int64_t stride, int64_t rows, int64_t padded, int64_t head_dim,
               float* to) {
  for (int64_t r = 0; r < rows; ++r) widen(from + r * stride, head_dim, to + r * head_dim);
  for (int64_t i = rows * head_dim; i < padded * head_dim; ++i) to[i] = 0.0f;
}

template <typename T>
void store_rows(const float* from, int64_t rows, int64_t head_dim, T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) narrow(from + r * head_dim, head_dim, to + r * stride);
}

// The right side of x y^T: panels whose columns are the rows of y, zeros beyond the last one.
template <typename T>
void pack_transposed(const T* from, int64_t stride, int64_t rows, int64_t head_dim, float* to) {
  constexpr int64_t PANEL = VECTORS * LANES;
  const int64_t padded = rounded_up(rows, LANES);
  for (int64_t first = 0; first < padded; first += PANEL, to += PANEL * head_dim) {
    const int64_t columns = padded - first < PANEL ? padded - first : PANEL;
    for (int64_t c = 0; c < columns; ++c) {
      const T* const row = from + (first + c) * stride;
      const bool inside = first + c < rows;
      for (int64_t d = 0; d < head_dim; ++d) to[d * columns + c] = inside ? to_float(row[d]) : 0.0f;
    }
  }
}

// The right side of x y: panels of the columns of y.
template <typename T>
void pack_rows(const T* from, int64_t stride, int64_t rows, int64_t head_dim, float* to) {
  constexpr int64_t PANEL = VECTORS * LANES;
  for (int64_t first = 0; first < head_dim; first += PANEL) {
    const int64_t columns = head_dim - first < PANEL ? head_dim - first : PANEL;
    for (int64_t r = 0; r < rows; ++r, to += columns) {
      widen(from + r * stride + first, columns, to);
    }
  }
}

// c += a^T b for ROWS columns of a and WIDTH vectors of b; rows of b and c are `stride` apart. Cells
// of a and b hold values of one row, or of two that are neighbours.
template <typename Cells, int WIDTH>
void add_transposed(const float* a, int64_t stride_a, const float* b, int64_t steps, float* c,
                    int64_t stride) {
  Floats sums[ROWS][WIDTH];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < WIDTH; ++w) sums[r][w] = load(c + r * stride + w * LANES);
  }
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
      for (int w = 0; w < WIDTH; ++w) {
        sums[r][w] = Cells::multiply_add(a[r], b + w * LANES, sums[r][w]);
      }
    }
    a += stride_a;
    b += stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int w = 0; w < WIDTH; ++w) store(c + r * stride + w * LANES, sums[r][w]);
  }
}

// The same for `rows` columns of a, a multiple of ROWS, and all columns of b.
template <typename Cells>
void add_product_transposed(const float* a, int64_t stride_a, const float* b, int64_t steps,
                            int64_t rows, int64_t head_dim, float* c) {
  constexpr int64_t PANEL = VECTORS * LANES;
  for (int64_t r = 0; r < rows; r += ROWS) {
    int64_t d = 0;
    float* const to = c + r * head_dim;
    for (; d + PANEL <= head_dim; d += PANEL) {
      add_transposed<Cells, VECTORS>(a + r, stride_a, b + d, steps, to + d, head_dim);
    }
    for (; d < head_dim; d += LANES) {
      add_transposed<Cells, 1>(a + r, stride_a, b + d, steps, to + d, head_dim);
    }
  }
}

inline float sum_of_lanes(Floats x) {
  float lanes[LANES], sum = 0.0f;
  store(lanes, x);
  for (int i = 0; i < LANES; ++i) sum += lanes[i];
  return sum;
}

// Turns a row of logits into probabilities; `scale` includes log2(e).
template <int DEGREE>
inline void softmax_row(float* row, int64_t keys, int64_t padded, float scale) {
  for (int64_t i = keys; i < padded; ++i) row[i] = -INFINITY;
  Floats most = load(row);
  for (int64_t i = LANES; i < padded; i += LANES) {
    const Floats logits = load(row + i);
    most = logits > most ? logits : most;
  }
  const float maximum = scale * largest(most);
  Floats sums{};
  for (int64_t i = 0; i < padded; i += LANES) {
    const Floats p = power_of_two<DEGREE>(scale * load(row + i) - maximum);
    sums += p;
    store(row + i, p);
  }
  const float inverse = 1.0f / sum_of_lanes(sums);
  for (int64_t i = 0; i < padded; i += LANES) store(row + i, inverse * load(row + i));
}

// Turns the gradients of probabilities into those of logits.
inline void softmax_gradient_row(const float* p, float* row, int64_t padded, float scale) {
  Floats sums{};
  for (int64_t i = 0; i < padded; i += LANES) sums += load(p + i) * load(row + i);
  const float mean = sum_of_lanes(sums);
  for (int64_t i = 0; i < padded; i += LANES) {
    store(row + i, scale * load(p + i) * (load(row + i) - mean));
  }
}

template <typename T>
void gradient(const AttentionHead& head, float* scratch) {
  constexpr int64_t PANEL = VECTORS * LANES;
  constexpr float LOG2_E = 1.4426950408889634f;
  const int64_t keys = head.keys, head_dim = head.head_dim;
  const int64_t columns = rounded_up(keys, LANES), key_rows = rounded_up(keys, ROWS);
  const int64_t stride = row_of_logits(keys);
  const auto take = [&](int64_t count) { return scratch += count, scratch - count; };
  float* const k_columns = take(head_dim * columns);
  float* const v_columns = take(head_dim * columns);
  float* const k_rows = take(head_dim * keys);
  float* const grad_k = take(head_dim * key_rows);
  float* const grad_v = take(head_dim * key_rows);
  float* const q = take(head_dim * QUERIES);
  float* const grad = take(head_dim * QUERIES);
  float* const grad_q = take(head_dim * QUERIES);
  float* const p = take(QUERIES * stride);
  float* const ds = take(QUERIES * stride);

  const auto* from_q = static_cast<const T*>(head.q.data);
  const auto* from_k = static_cast<const T*>(head.k.data);
  const auto* from_v = static_cast<const T*>(head.v.data);
  const auto* from_grad = static_cast<const T*>(head.grad.data);
  auto* to_q = static_cast<T*>(head.grad_q.data);
  pack_transposed(from_k, head.k.stride, keys, head_dim, k_columns);
  pack_transposed(from_v, head.v.stride, keys, head_dim, v_columns);
  pack_rows(from_k, head.k.stride, keys, head_dim, k_rows);
  for (int64_t i = 0; i < head_dim * key_rows; ++i) grad_k[i] = grad_v[i] = 0.0f;
  for (int64_t i = 0; i < QUERIES * stride; ++i) p[i] = ds[i] = 0.0f;

  for (int64_t first = 0; first < head.queries; first += QUERIES) {
    const int64_t left = head.queries - first;
    const int64_t queries = left < QUERIES ? left : QUERIES;
    const int64_t rows = rounded_up(queries, ROWS);
    load_rows(from_q + first * head.q.stride, head.q.stride, queries, rows, head_dim, q);
    load_rows(from_grad + first * head.grad.stride, head.grad.stride, queries, rows, head_dim,
              grad);
    for (int64_t r = 0; r < rows; r += ROWS) {
      product_of_panels<Float32, false>(q + r * head_dim, head_dim, k_columns, PANEL * head_dim,
                                        head_dim, columns, p + r * stride, stride, nullptr);
      product_of_panels<Float32, false>(grad + r * head_dim, head_dim, v_columns,
                                        PANEL * head_dim, head_dim, columns, ds + r * stride,
                                        stride, nullptr);
      for (int64_t i = r; i < r + ROWS; ++i) {
        softmax_row<Float32::DEGREE>(p + i * stride, keys, columns, head.scale * LOG2_E);
        softmax_gradient_row(p + i * stride, ds + i * stride, columns, head.scale);
      }
      for (int64_t d = 0; d < head_dim; d += PANEL) {
        const int64_t width = head_dim - d < PANEL ? head_dim - d : PANEL;
        product_of_panels<Float32, false>(ds + r * stride, stride, k_rows + d * keys, 0, keys,
                                          width, grad_q + r * head_dim + d, head_dim, nullptr);
      }
    }
    // Only the rows of queries: a padded row times an infinite one would be NaN.
    add_product_transposed<Float32>(p, stride, grad, queries, key_rows, head_dim, grad_v);
    add_product_transposed<Float32>(ds, stride, q, queries, key_rows, head_dim, grad_k);
    store_rows(grad_q, queries, head_dim, to_q + first * head.grad_q.stride, head.grad_q.stride);
  }
  store_rows(grad_k, keys, head_dim, static_cast<T*>(head.grad_k.data), head.grad_k.stride);
  store_rows(grad_v, keys, head_dim, static_cast<T*>(head.grad_v.data), head.grad_v.stride);
}

#ifdef DAFAST_IN_AVX512_BF16

// The same in bfloat16, two values to a cell: pairs along the sum of each product. The probabilities
// and the gradients of the logits are rounded, as in PyTorch's kernels.
struct BFloat16 {
  static constexpr int DEGREE = 3;
  static Floats multiply_add(float a, const float* b, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)load(b));
  }
};
static_assert(ROWS % 2 == 0, "whole pairs of queries");

int64_t pair_scratch(int64_t keys, int64_t head_dim) {
  const int64_t columns = rounded_up(keys, LANES), rows = rounded_up(keys, ROWS);
  const int64_t single = head_dim * (2 * rows + 4 * QUERIES + (keys + 1) / 2);
  return single + head_dim / 2 * (keys + 2 * columns) +
         (2 * ROWS + QUERIES) * row_of_logits(keys);
}

// Rows of head_dim values, followed by zeros up to `padded` rows.
void copy_rows(const bfloat16* from, int64_t stride, int64_t rows, int64_t padded,
               int64_t head_dim, float* to) {
  auto* const values = reinterpret_cast<bfloat16*>(to);
  const size_t bytes = static_cast<size_t>(head_dim) * sizeof(bfloat16);
  for (int64_t r = 0; r < rows; ++r) memcpy(values + r * head_dim, from + r * stride, bytes);
  memset(values + rows * head_dim, 0, static_cast<size_t>(padded - rows) * bytes);
}

// Cells of a row and the next one, which is missing after an odd number of rows; panels of
// `panel` columns.
void pair_rows(const float* from, int64_t rows, int64_t head_dim, int64_t panel, float* to) {
  for (int64_t first = 0; first < head_dim; first += panel) {
    const int64_t columns = head_dim - first < panel ? head_dim - first : panel;
    for (int64_t r = 0; r < rows; r += 2, to += columns) {
      const auto* const a = reinterpret_cast<const uint16_t*>(from) + r * head_dim + first;
      const uint16_t* const b = a + head_dim;
      for (int64_t i = 0; i < columns; i += LANES) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(a + i)));
        __m512i high{};
        if (r + 1 < rows) {
          high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(b + i)));
        }
        _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
}

// Rounds two rows to cells of both; the second may be missing.
inline void round_pair(const float* a, const float* b, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += LANES) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load(a + i)));
    __m512i high{};
    if (b) high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(load(b + i)));
    _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// Rounds a row in place: the result overwrites only values that were read.
inline void round_row(float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(load(row + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2), halves);
  }
}

void gradient_of_pairs(const AttentionHead& head, float* scratch) {
  constexpr int64_t PANEL = VECTORS * LANES;
  constexpr float LOG2_E = 1.4426950408889634f;
  const int64_t keys = head.keys, head_dim = head.head_dim, depth = head_dim / 2;
  const int64_t columns = rounded_up(keys, LANES), key_rows = rounded_up(keys, ROWS);
  const int64_t key_cells = (keys + 1) / 2, stride = row_of_logits(keys);
  const auto take = [&](int64_t count) { return scratch += count, scratch - count; };
  // Aligned to a cache line where head_dim is a multiple of 32.
  float* const p = take(ROWS * stride);
  float* const ds = take(ROWS * stride);
  float* const p_pairs = take(QUERIES / 2 * stride);
  float* const ds_pairs = take(QUERIES / 2 * stride);
  float* const grad_k = take(head_dim * key_rows);
  float* const grad_v = take(head_dim * key_rows);
  float* const grad_q = take(head_dim * QUERIES);
  float* const q = take(depth * QUERIES);
  float* const grad = take(depth * QUERIES);
  float* const q_pairs = take(depth * QUERIES);
  float* const grad_pairs = take(depth * QUERIES);
  float* const k_rows = take(head_dim * key_cells);
  float* const k_columns = take(depth * columns);
  float* const v_columns = take(depth * columns);
  float* const cells = take(depth * keys);

  copy_rows(static_cast<const bfloat16*>(head.k.data), head.k.stride, keys, keys, head_dim, cells);
  pack_transposed(cells, depth, keys, depth, k_columns);
  pair_rows(cells, keys, head_dim, PANEL, k_rows);
  copy_rows(static_cast<const bfloat16*>(head.v.data), head.v.stride, keys, keys, head_dim, cells);
  pack_transposed(cells, depth, keys, depth, v_columns);
  for (int64_t i = 0; i < head_dim * key_rows; ++i) grad_k[i] = grad_v[i] = 0.0f;
  for (int64_t i = 0; i < QUERIES / 2 * stride; ++i) p_pairs[i] = ds_pairs[i] = 0.0f;

  const auto* from_q = static_cast<const bfloat16*>(head.q.data);
  const auto* from_grad = static_cast<const bfloat16*>(head.grad.data);
  for (int64_t first = 0; first < head.queries; first += QUERIES) {
    const int64_t left = head.queries - first;
    const int64_t queries = left < QUERIES ? left : QUERIES, rows = rounded_up(queries, ROWS);
    copy_rows(from_q + first * head.q.stride, head.q.stride, queries, rows, head_dim, q);
    copy_rows(from_grad + first * head.grad.stride, head.grad.stride, queries, rows, head_dim,
              grad);
    pair_rows(q, queries, head_dim, head_dim, q_pairs);
    pair_rows(grad, queries, head_dim, head_dim, grad_pairs);
    for (int64_t r = 0; r < rows; r += ROWS) {
      product_of_panels<BFloat16, false>(q + r * depth, depth, k_columns, PANEL * depth, depth,
                                         columns, p, stride, nullptr);
      product_of_panels<BFloat16, false>(grad + r * depth, depth, v_columns, PANEL * depth, depth,
                                         columns, ds, stride, nullptr);
      for (int64_t i = 0; i < ROWS; ++i) {
        softmax_row<BFloat16::DEGREE>(p + i * stride, keys, columns, head.scale * LOG2_E);
        softmax_gradient_row(p + i * stride, ds + i * stride, columns, head.scale);
      }
      for (int64_t i = 0; i < ROWS && r + i < queries; i += 2) {
        const int64_t next = r + i + 1 < queries ? (i + 1) * stride : 0, to = (r + i) / 2 * stride;
        round_pair(p + i * stride, next ? p + next : nullptr, columns, p_pairs + to);
        round_pair(ds + i * stride, next ? ds + next : nullptr, columns, ds_pairs + to);
      }
      for (int64_t i = 0; i < ROWS; ++i) round_row(ds + i * stride, columns);
      for (int64_t d = 0; d < head_dim; d += PANEL) {
        const int64_t width = head_dim - d < PANEL ? head_dim - d : PANEL;
        product_of_panels<BFloat16, false>(ds, stride, k_rows + d * key_cells, 0, key_cells, width,
                                           grad_q + r * head_dim + d, head_dim, nullptr);
      }
    }
    const int64_t pairs = (queries + 1) / 2;
    add_product_transposed<BFloat16>(p_pairs, stride, grad_pairs, pairs, key_rows, head_dim,
                                     grad_v);
    add_product_transposed<BFloat16>(ds_pairs, stride, q_pairs, pairs, key_rows, head_dim, grad_k);
    store_rows(grad_q, queries, head_dim,
               static_cast<bfloat16*>(head.grad_q.data) + first * head.grad_q.stride,
               head.grad_q.stride);
  }
  store_rows(grad_k, keys, head_dim, static_cast<bfloat16*>(head.grad_k.data), head.grad_k.stride);
  store_rows(grad_v, keys, head_dim, static_cast<bfloat16*>(head.grad_v.data), head.grad_v.stride);
}

#endif

AttentionGradientKernel gradient_kernel(Dtype dtype) {
#ifdef DAFAST_IN_AVX512_BF16
  if (dtype == Dtype::bfloat16) return {pair_scratch, gradient_of_pairs};
#endif
  return {gradient_scratch, dtype == Dtype::float32    ? gradient<float>
                            : dtype == Dtype::bfloat16 ? gradient<bfloat16>
                                                       : gradient<float16>};
}
