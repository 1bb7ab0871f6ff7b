// A linear layer in float32 or bfloat16 on the CPU, from weights that are packed in advance.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <memory>

#include "../registry.h"
#include "pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

// x (M, K) to out (M, N), both contiguous and of one dtype.
struct LinearPacked {
  const void* x;
  void* out;
  Dtype dtype;
  FloatLayer layer;
};

// Floats for a group of rows, and one row padded to blocks of lanes.h.
inline int64_t linear_floats(int64_t depth) { return (kRowGroup + 1) * (depth + kColumns); }

// Up to kRowGroup rows from `row` on.
using PackedRows = void (*)(const LinearPacked& call, int64_t row, int64_t rows, float* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "linear_packed_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Packs weight (N, K), contiguous, into `packed` of the same dtype: float32 or bfloat16, the latter
// in pairs.
template <typename T>
void pack(const T* from, int64_t columns, int64_t depth, int64_t per_cell, T* to) {
  const int64_t cells = (depth + per_cell - 1) / per_cell;
  std::fill(to, to + whole_panels(columns) * cells * per_cell, T{});
  for (int64_t n = 0; n < columns; ++n) {
    T* const panel = to + n / kColumns * kColumns * cells * per_cell;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t cell = k / per_cell * kColumns + n % kColumns;
      panel[cell * per_cell + k % per_cell] = from[n * depth + k];
    }
  }
}

void pack_linear(const Tensor& weight, Tensor packed) {
  const bool pairs = weight.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && packed.is_contiguous() &&
                      (pairs || weight.scalar_type() == ScalarType::Float) &&
                      packed.scalar_type() == weight.scalar_type(),
                  "pack_linear: expected contiguous weights (N, K) in float32 or bfloat16");
  const int64_t columns = weight.size(0), depth = weight.size(1);
  STD_TORCH_CHECK(packed.numel() == whole_panels(columns) * cells_of(depth, pairs) * (1 + pairs),
                  "pack_linear: expected whole panels");
  if (pairs) {
    pack(static_cast<const uint16_t*>(weight.const_data_ptr()), columns, depth, 2,
         static_cast<uint16_t*>(packed.mutable_data_ptr()));
  } else {
    pack(static_cast<const float*>(weight.const_data_ptr()), columns, depth, 1,
         static_cast<float*>(packed.mutable_data_ptr()));
  }
}

// x (M, K) and out (M, N) contiguous and of one dtype; packed from pack_linear; bias float32, padded
// to whole panels.
void linear_packed(const Tensor& x, Tensor out, const Tensor& packed, const Tensor& bias) {
  constexpr const char* kOp = "linear_packed";
  const int64_t rows = x.size(0), depth = x.size(1), columns = out.size(1);
  const bool pairs = packed.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.is_contiguous() && out.is_contiguous() && out.size(0) == rows &&
                      out.scalar_type() == x.scalar_type(),
                  kOp, ": expected contiguous x and out of one dtype");
  STD_TORCH_CHECK((pairs || packed.scalar_type() == ScalarType::Float) && packed.is_contiguous() &&
                      packed.numel() == whole_panels(columns) * cells_of(depth, pairs) * (1 + pairs),
                  kOp, ": expected weights from pack_linear");
  if (out.numel() == 0) return;
  const LinearPacked call{x.const_data_ptr(), out.mutable_data_ptr(), float_dtype_of(x, kOp),
                          {depth, columns, static_cast<const float*>(packed.const_data_ptr()),
                           float_data_of(bias, whole_panels(columns), kOp)}};
  const PackedRows multiply =
      pairs ? DAFAST_FOR_ISA(packed_rows_pairs) : DAFAST_FOR_ISA(packed_rows);
  STD_TORCH_CHECK(multiply, kOp, ": weights in bfloat16 need AVX-512 with BF16");
  for_ranges(rows, kRowLeast, kRowGroup, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(linear_floats(depth))]);
    int64_t begin, end;
    while (ranges.take(begin, end)) multiply(call, begin, end - begin, scratch.get());
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(linear_packed, m) {
  m.def("linear_packed(Tensor x, Tensor(a!) out, Tensor packed, Tensor bias) -> ()");
  m.def("pack_linear(Tensor weight, Tensor(a!) packed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("linear_packed", TORCH_BOX(&dafast::cpu::linear_packed));
  m.impl("pack_linear", TORCH_BOX(&dafast::cpu::pack_linear));
}
