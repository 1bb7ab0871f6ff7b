// The backward of attention on the CPU: threads share the heads of all sequences, and one thread
// computes a head from its inputs, in float32, or bfloat16 with sums in float32. Nothing of the
// forward is kept, and every sum has one order, so that the result has the same bits for any number
// of threads.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "../registry.h"
#include "sequences.h"
#include "tensors.h"

namespace dafast::cpu {

// Rows of head_dim contiguous elements, `stride` elements apart.
struct HeadRows {
  void* data;
  int64_t stride;
};

// One head of one sequence.
struct AttentionHead {
  HeadRows q, k, v, grad;           // inputs, and the gradient of the output
  HeadRows grad_q, grad_k, grad_v;  // results
  int64_t queries, keys, head_dim;
  float scale;  // of the logits
};

struct AttentionGradientKernel {
  int64_t (*scratch)(int64_t keys, int64_t head_dim);  // number of floats
  void (*run)(const AttentionHead& head, float* scratch);
};

}  // namespace dafast::cpu

#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS "flash_attention_backward_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "flash_attention_backward";

// One head of x (B, N, H, D) from a row on.
HeadRows rows_of(const Tensor& x, int64_t batch, int64_t row, int64_t head) {
  const int64_t size = float_dtype_of(x, kOp) == Dtype::float32 ? 4 : 2;
  const int64_t at = batch * x.stride(0) + row * x.stride(1) + head * x.stride(2);
  return {static_cast<char*>(const_cast<void*>(x.const_data_ptr())) + at * size, x.stride(1)};
}

void check(const Tensor& x, const Tensor& like, int64_t tokens) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4 && x.scalar_type() == like.scalar_type() &&
                      x.size(0) == like.size(0) && x.size(1) == tokens &&
                      x.size(2) == like.size(2) && x.size(3) == like.size(3),
                  kOp, ": expected CPU tensors (B, N, H, D) of one dtype");
  STD_TORCH_CHECK(x.stride(3) == 1 || x.numel() == 0, kOp, ": the last stride must be 1");
}

// grad, q, grad_q (B, N, H, D); k, v, grad_k, grad_v (B, M, H, D); the last stride is 1. With
// cu_seqlens, B is 1, and the rows are sequences that each attend to themselves.
void backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
              std::optional<Tensor> cu_seqlens, double scale, Tensor grad_q, Tensor grad_k,
              Tensor grad_v) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, kOp, ": expected CPU tensors (B, N, H, D)");
  for (const Tensor* x : {&q, &grad, static_cast<const Tensor*>(&grad_q)}) check(*x, q, q.size(1));
  for (const Tensor* x : {&k, &v, static_cast<const Tensor*>(&grad_k),
                          static_cast<const Tensor*>(&grad_v)}) {
    check(*x, q, k.size(1));
  }
  const int64_t head_dim = q.size(3), heads = q.size(2);
  STD_TORCH_CHECK(head_dim % 16 == 0 && head_dim > 0 && head_dim <= 128, kOp,
                  ": expected a head_dim of 16, 32, ... 128");
  STD_TORCH_CHECK(scale > 0, kOp, ": expected a positive scale");
  std::vector<int64_t> ends;
  if (cu_seqlens.has_value()) {
    STD_TORCH_CHECK(q.size(0) == 1 && k.size(1) == q.size(1), kOp,
                    ": with cu_seqlens, expected q, k, v (1, T, H, D)");
    ends = ends_of(*cu_seqlens, q.size(1), kOp);
  }

  std::vector<AttentionHead> all;
  int64_t most_keys = 0, most_queries = 0;
  const int64_t sequences = ends.empty() ? q.size(0) : static_cast<int64_t>(ends.size()) - 1;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t batch = ends.empty() ? s : 0, row = ends.empty() ? 0 : ends[s];
    const int64_t queries = ends.empty() ? q.size(1) : ends[s + 1] - row;
    const int64_t keys = ends.empty() ? k.size(1) : queries;
    most_keys = std::max(most_keys, keys);
    most_queries = std::max(most_queries, queries);
    for (int64_t h = 0; h < heads; ++h) {
      const auto at = [&](const Tensor& x) { return rows_of(x, batch, row, h); };
      all.push_back({at(q), at(k), at(v), at(grad), at(grad_q), at(grad_k), at(grad_v), queries,
                     keys, head_dim, static_cast<float>(scale)});
    }
  }
  if (all.empty()) return;
  const Dtype dtype = float_dtype_of(q, kOp);
  const AttentionGradientKernel kernel = DAFAST_FOR_ISA(gradient_kernel)(dtype);
  const int64_t work = std::max<int64_t>(1, most_queries * most_keys * head_dim);
  const int64_t grain = std::max<int64_t>(1, (1 << 17) / work);
  torch::stable::parallel_for(
      0, static_cast<int64_t>(all.size()), grain, [&](int64_t begin, int64_t end) {
        const int64_t size = kernel.scratch(most_keys, head_dim);
        const std::unique_ptr<float[]> memory(new float[static_cast<size_t>(size + 16)]);
        // Aligned to a cache line.
        float* const scratch = memory.get() + (-reinterpret_cast<uintptr_t>(memory.get()) & 63) / 4;
        for (int64_t i = begin; i < end; ++i) kernel.run(all[i], scratch);
      });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(flash_attention_backward, m) {
  m.def(
      "flash_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens,"
      " float scale, Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("flash_attention_backward", TORCH_BOX(&dafast::cpu::backward));
}
