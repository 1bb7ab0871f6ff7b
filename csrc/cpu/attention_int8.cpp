// Attention with both products in int8 on the CPU; see attention_int8_kernels.h.
//
// A thread packs the keys and values of a head when it takes the first block of queries of this
// head. Packed keys lie in panels of up to 64 keys, [D / 4][keys][4]; packed values in panels of up
// to 64 dimensions, [keys / 4][dimensions][4].
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../registry.h"
#include "pieces.h"

namespace dafast::cpu {

constexpr int64_t kInt8Queries = 96;     // most queries of a block
constexpr int64_t kInt8HeadDim = 128;    // largest dimension of a head
constexpr int64_t kInt8Lanes = 16;       // keys and dimensions are padded to a multiple of this

// The tokens of one head of one sequence: rows of `head_dim` elements, `stride` elements apart.
struct Int8Head {
  const void *q, *k, *v;
  void* out;
  bool bfloat16;  // all of them; otherwise float32
  int64_t tokens, head_dim, stride, out_stride;
  float scale;  // of the logits, times log2(e)
};

struct PackedHead {
  int8_t* keys;          // (padded tokens, D)
  int8_t* values;        // (padded tokens, D)
  float* key_scales;     // (padded tokens)
  int32_t* key_offsets;  // (padded tokens): -128 times the sum of a key
  float* value_scales;   // (D)
};

using PackHead = void (*)(const Int8Head& head, const PackedHead& packed);
// Queries [begin, end); `scratch` has room for `kInt8Scratch` bytes.
using AttendQueries = void (*)(const Int8Head& head, const PackedHead& packed, int64_t begin,
                               int64_t end, std::byte* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "attention_int8_kernels.h"
#define DAFAST_KERNELS_FOR_VNNI
#define DAFAST_KERNELS_FOR_DOTPROD
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// qkv (B, N, 3, H, D), contiguous, float32 or bfloat16; out (B, N, H, D), contiguous, like it.
void attention_int8(const Tensor& qkv, Tensor out, double scale) {
  const bool bfloat16 = qkv.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(qkv.dim() == 5 && qkv.size(2) == 3 && qkv.is_contiguous() &&
                      (bfloat16 || qkv.scalar_type() == ScalarType::Float) &&
                      out.scalar_type() == qkv.scalar_type() && out.is_contiguous() &&
                      out.numel() * 3 == qkv.numel(),
                  "attention_int8: expected contiguous qkv (B, N, 3, H, D) and out (B, N, H, D)");
  const int64_t batch = qkv.size(0), tokens = qkv.size(1), heads = qkv.size(3);
  const int64_t head_dim = qkv.size(4), size = bfloat16 ? 2 : 4;
  STD_TORCH_CHECK(head_dim % kInt8Lanes == 0 && head_dim > 0 && head_dim <= kInt8HeadDim,
                  "attention_int8: expected a head_dim of 16, 32, ... 128");
  if (qkv.numel() == 0) return;
  const PackHead pack = DAFAST_FOR_ISA(pack_head);
  const AttendQueries attend = DAFAST_FOR_ISA(attend_queries);
  STD_TORCH_CHECK(pack && attend, "attention_int8: this CPU has neither AVX2 nor ARM's dot products");
  const auto* from = static_cast<const std::byte*>(qkv.const_data_ptr());
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  const int64_t width = heads * head_dim;
  const auto head_at = [&](int64_t index) {
    const int64_t b = index / heads, h = index % heads;
    const std::byte* q = from + (b * tokens * 3 * width + h * head_dim) * size;
    return Int8Head{q, q + width * size, q + 2 * width * size,
                    to + (b * tokens * width + h * head_dim) * size, bfloat16, tokens, head_dim,
                    3 * width, width, static_cast<float>(scale * 1.4426950408889634)};
  };
  // Blocks of about the same size, so that none is mostly padding.
  const int64_t blocks = (tokens + kInt8Queries - 1) / kInt8Queries;
  const int64_t tile = DAFAST_FOR_ISA(kQueryTile);
  const int64_t step = ((tokens + blocks - 1) / blocks + tile - 1) / tile * tile;
  const int64_t padded = (tokens + kInt8Lanes - 1) / kInt8Lanes * kInt8Lanes;
  const std::vector<int64_t> sizes(static_cast<size_t>(batch * heads), blocks);
  for_groups(sizes, batch * heads * blocks, [&](Groups::Worker& worker) {
    const int64_t vectors = padded * 8 + kInt8HeadDim * 4;
    const int64_t bytes = 2 * padded * head_dim + vectors + DAFAST_FOR_ISA(kInt8Scratch) + 64;
    const std::unique_ptr<std::byte[]> memory(new std::byte[static_cast<size_t>(bytes)]);
    std::byte* const start = memory.get() + (-reinterpret_cast<uintptr_t>(memory.get()) & 63);
    PackedHead packed;
    packed.keys = reinterpret_cast<int8_t*>(start);
    packed.values = packed.keys + padded * head_dim;
    packed.key_scales = reinterpret_cast<float*>(packed.values + padded * head_dim);
    packed.key_offsets = reinterpret_cast<int32_t*>(packed.key_scales + padded);
    packed.value_scales = reinterpret_cast<float*>(packed.key_offsets + padded);
    std::byte* const scratch = reinterpret_cast<std::byte*>(packed.value_scales + kInt8HeadDim);
    int64_t last = -1, index, block;
    while (worker.take(index, block)) {
      const int64_t begin = block * step;
      const Int8Head head = head_at(index);
      if (index != last) pack(head, packed);
      last = index;
      if (begin < tokens) attend(head, packed, begin, std::min(tokens, begin + step), scratch);
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(attention_int8, m) {
  m.def("attention_int8(Tensor qkv, Tensor(a!) out, float scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("attention_int8", TORCH_BOX(&dafast::cpu::attention_int8));
}
