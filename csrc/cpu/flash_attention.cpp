// Attention on the CPU: threads take blocks of queries as they come, and each thread packs the keys
// and values of a head once. Two threads can pack the same head, but there is only one parallel
// region, and packed data stays in the cache of its core. Packing converts float16 to float, and bfloat16
// too without AVX-512 BF16.
//
// Packed data consists of cells of 4 bytes: a float, or two bfloat16 that are neighbours along the
// dimension that a product sums over. A product reads its left side in rows of cells, and its right
// side in panels of `panel` columns (the last one is narrower). A panel holds, for each step of the
// sum, the cells of all its columns. The columns of K are keys, padded with zeros to a multiple of
// `lanes`; the columns of V are the dimensions of the head.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "dafast/numbers.h"
#include "../registry.h"
#include "pieces.h"
#include "sequences.h"

namespace dafast::cpu {

// Some queries of one head, and all of its keys.
struct AttentionBlock {
  const float* q;  // (rows, depth) cells; rows padded to a multiple of `AttentionKernel::rows`
  const float* k;
  const float* v;
  int64_t rows, keys, head_dim;
  float scale;     // of the logits, times log2(e)
  float* out;      // (rows, head_dim)
  float* scratch;  // AttentionKernel::scratch floats
};

struct AttentionKernel {
  bool pairs;  // cells are pairs of bfloat16
  int64_t rows, lanes, panel, scratch;
  void (*run)(const AttentionBlock& block);
};

constexpr int64_t kAttentionRows = 96;  // most rows of a block

}  // namespace dafast::cpu

#define DAFAST_KERNELS "flash_attention_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The cells of a row: floats, or pairs of bfloat16.
template <typename T>
void copy_row(const T* from, int64_t head_dim, bool pairs, float* cells) {
  if (pairs) {
    std::memcpy(cells, from, static_cast<size_t>(head_dim) * sizeof(T));
  } else {
    for (int64_t d = 0; d < head_dim; ++d) cells[d] = to_float(from[d]);
  }
}

// Queries of one head of one sequence, and all the keys and values that they attend to.
template <typename T>
struct Block {
  const T *q, *k, *v;
  T* out;
  int64_t rows, keys;
};

// Packs keys for q k^T: a column is a key, a step is a cell of its row.
template <typename T>
void pack_keys(const AttentionKernel& kernel, const T* k, int64_t stride, int64_t keys,
               int64_t head_dim, float* row, float* to) {
  const int64_t depth = head_dim / (kernel.pairs ? 2 : 1);
  const int64_t padded = divided_up(keys, kernel.lanes) * kernel.lanes;
  for (int64_t first = 0; first < padded; first += kernel.panel, to += kernel.panel * depth) {
    const int64_t columns = std::min(kernel.panel, padded - first);
    for (int64_t c = 0; c < columns; ++c) {
      if (first + c < keys) {
        copy_row(k + (first + c) * stride, head_dim, kernel.pairs, row);
      } else {
        std::fill(row, row + depth, 0.0f);
      }
      for (int64_t step = 0; step < depth; ++step) to[step * columns + c] = row[step];
    }
  }
}

// Packs values for p v: a column is a dimension of the head, a step is one key or two.
template <typename T>
void pack_values(const AttentionKernel& kernel, const T* v, int64_t stride, int64_t keys,
                 int64_t head_dim, float* to) {
  for (int64_t first = 0; first < head_dim; first += kernel.panel) {
    const int64_t columns = std::min(kernel.panel, head_dim - first);
    for (int64_t key = 0; key < keys; key += kernel.pairs ? 2 : 1, to += columns) {
      const T* const row = v + key * stride + first;
      if constexpr (sizeof(T) == 2) {
        if (kernel.pairs) {
          const bool both = key + 1 < keys;
          const T* const next = row + (both ? stride : 0);
          const uint32_t mask = both ? 0xffff0000u : 0u;
          for (int64_t d = 0; d < columns; ++d) {
            to[d] = float_of(row[d].bits | (static_cast<uint32_t>(next[d].bits) << 16 & mask));
          }
          continue;
        }
      }
      for (int64_t d = 0; d < columns; ++d) to[d] = to_float(row[d]);
    }
  }
}

template <typename T>
void attention(const AttentionKernel& kernel, const Tensor& q, const Tensor& k, const Tensor& v,
               Tensor& out, const std::vector<int64_t>& ends, float scale) {
  const int64_t head_dim = q.size(3), heads = q.size(2), depth = head_dim / (kernel.pairs ? 2 : 1);
  std::vector<Block<T>> blocks;
  std::vector<int64_t> sizes;  // blocks of each head, which share packed keys and values
  int64_t most_keys = 0;
  const int64_t sequences = ends.empty() ? q.size(0) : static_cast<int64_t>(ends.size()) - 1;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t batch = ends.empty() ? s : 0;
    const int64_t begin = ends.empty() ? 0 : ends[s];
    const int64_t queries = ends.empty() ? q.size(1) : ends[s + 1] - begin;
    if (queries == 0) continue;
    const int64_t keys = ends.empty() ? k.size(1) : queries;
    most_keys = std::max(most_keys, keys);
    // Blocks of about the same size, so that none is mostly padding.
    const int64_t size = divided_up(queries, divided_up(queries, kAttentionRows));
    const int64_t step = divided_up(size, kernel.rows) * kernel.rows;
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = [&](const Tensor& x, int64_t row) {
        return static_cast<const T*>(x.const_data_ptr()) + batch * x.stride(0) +
               row * x.stride(1) + h * x.stride(2);
      };
      for (int64_t first = 0; first < queries; first += step) {
        const int64_t row = begin + first;
        blocks.push_back({at(q, row), at(k, begin), at(v, begin), const_cast<T*>(at(out, row)),
                          std::min(step, queries - first), keys});
      }
      sizes.push_back(divided_up(queries, step));
    }
  }
  std::vector<int64_t> firsts(sizes.size());
  std::exclusive_scan(sizes.begin(), sizes.end(), firsts.begin(), int64_t{0});

  const int64_t total = static_cast<int64_t>(blocks.size());
  const int64_t work = blocks.front().rows * most_keys * head_dim;
  const int64_t threads = std::max<int64_t>(1, total * work >> 18);  // 10 microseconds for each
  for_groups(sizes, threads, [&](Groups::Worker& worker) {
    const int64_t packed = divided_up(most_keys, kernel.lanes) * kernel.lanes * depth;
    const int64_t size_q = kAttentionRows * depth, size_out = kAttentionRows * head_dim;
    const int64_t size = 2 * packed + size_q + size_out + kernel.scratch + depth + 16;
    const std::unique_ptr<float[]> memory(new float[static_cast<size_t>(size)]);
    // Aligned to a cache line.
    float* const packed_k = memory.get() + (-reinterpret_cast<uintptr_t>(memory.get()) & 63) / 4;
    float* const packed_v = packed_k + packed;
    float* const rows_q = packed_v + packed;
    float* const rows_out = rows_q + size_q;
    float* const scratch = rows_out + size_out;
    float* const row = scratch + kernel.scratch;
    int64_t group, piece, last = -1;
    while (worker.take(group, piece)) {
      const Block<T>& block = blocks[firsts[group] + piece];
      if (group != last) {
        last = group;
        pack_keys(kernel, block.k, k.stride(1), block.keys, head_dim, row, packed_k);
        pack_values(kernel, block.v, v.stride(1), block.keys, head_dim, packed_v);
      }
      const int64_t rows = block.rows;
      const int64_t padded = divided_up(rows, kernel.rows) * kernel.rows;
      for (int64_t r = 0; r < rows; ++r) {
        copy_row(block.q + r * q.stride(1), head_dim, kernel.pairs, rows_q + r * depth);
      }
      std::fill(rows_q + rows * depth, rows_q + padded * depth, 0.0f);
      kernel.run({rows_q, packed_k, packed_v, padded, block.keys, head_dim, scale, rows_out,
                  scratch});
      for (int64_t r = 0; r < rows; ++r) {
        T* const to = block.out + r * out.stride(1);
        for (int64_t d = 0; d < head_dim; ++d) to[d] = from_float<T>(rows_out[r * head_dim + d]);
      }
    }
  });
}

// q (B, N, H, D); k, v (B, M, H, D); out like q, contiguous; the last stride is 1. With cu_seqlens,
// B is 1, and the rows are sequences that each attend to themselves.
void flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, Tensor out,
                     std::optional<Tensor> cu_seqlens, double scale) {
  for (const Tensor* x : {&q, &k, &v, static_cast<const Tensor*>(&out)}) {
    STD_TORCH_CHECK(x->is_cpu() && x->dim() == 4 && x->scalar_type() == q.scalar_type() &&
                        x->size(0) == q.size(0) && x->size(2) == q.size(2) &&
                        x->size(3) == q.size(3),
                    "flash_attention: expected CPU tensors (B, N, H, D) of one dtype");
    STD_TORCH_CHECK(x->stride(3) == 1 || x->numel() == 0,
                    "flash_attention: the last stride must be 1");
  }
  STD_TORCH_CHECK(k.size(1) == v.size(1) && out.size(1) == q.size(1) && out.is_contiguous(),
                  "flash_attention: expected as many keys as values, and a contiguous out like q");
  STD_TORCH_CHECK(q.size(3) % 16 == 0 && q.size(3) > 0 && q.size(3) <= 128,
                  "flash_attention: expected a head_dim of 16, 32, ... 128");
  STD_TORCH_CHECK(scale > 0, "flash_attention: expected a positive scale");
  std::vector<int64_t> ends;
  if (cu_seqlens.has_value()) {
    STD_TORCH_CHECK(q.size(0) == 1 && k.size(1) == q.size(1),
                    "flash_attention: with cu_seqlens, expected q, k, v (1, T, H, D)");
    ends = ends_of(*cu_seqlens, q.size(1), "flash_attention");
  }
  if (q.numel() == 0) return;
  if (k.size(1) == 0) {  // empty sums
    const size_t size = q.scalar_type() == ScalarType::Float ? 4 : 2;
    std::memset(out.mutable_data_ptr(), 0, static_cast<size_t>(out.numel()) * size);
    return;
  }
  const AttentionKernel kernel =
      DAFAST_FOR_ISA(kernel_for)(q.scalar_type() == ScalarType::BFloat16);
  const float scale2 = static_cast<float>(scale * 1.4426950408889634);  // log2(e)
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return attention<float>(kernel, q, k, v, out, ends, scale2);
    case ScalarType::Half:
      return attention<float16>(kernel, q, k, v, out, ends, scale2);
    case ScalarType::BFloat16:
      return attention<bfloat16>(kernel, q, k, v, out, ends, scale2);
    default:
      STD_TORCH_CHECK(false, "flash_attention: expected float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(flash_attention, m) {
  m.def(
      "flash_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) out, Tensor? cu_seqlens,"
      " float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("flash_attention", TORCH_BOX(&dafast::cpu::flash_attention));
}
