// A linear layer in int8 on the CPU. The weights are quantised in advance, for each output channel;
// the inputs are quantised for each token when they are read.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../registry.h"
#include "int8_layer.h"
#include "pieces.h"

namespace dafast::cpu {

// x (M, K) to out (M, N), both contiguous and of one dtype.
struct LinearInt8 {
  const void* x;
  void* out;
  bool bfloat16;  // of both; otherwise float32
  int64_t rows;
  Int8Layer layer;
};

// Up to kInt8Rows rows from `row` on; `scratch` has room for int8_scratch(K) bytes.
using LinearRows = void (*)(const LinearInt8& call, int64_t row, int64_t rows, uint8_t* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "linear_int8_kernels.h"
#define DAFAST_KERNELS_FOR_VNNI
#define DAFAST_KERNELS_FOR_DOTPROD
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Packs weight (N, K), int8 and contiguous, into `packed`, and writes its sums (N) int32.
void pack_int8(const Tensor& weight, Tensor packed, Tensor sums) {
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const int64_t padded = round_up(depth, kInt8Depth);
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Char && weight.is_contiguous() &&
                      packed.numel() == round_up(columns, kInt8Columns) * padded &&
                      packed.scalar_type() == ScalarType::Char && packed.is_contiguous() &&
                      sums.scalar_type() == ScalarType::Int && sums.numel() == columns,
                  "pack_int8: unsupported shapes or dtypes");
  const auto* from = static_cast<const int8_t*>(weight.const_data_ptr());
  auto* to = static_cast<int8_t*>(packed.mutable_data_ptr());
  auto* totals = static_cast<int32_t*>(sums.mutable_data_ptr());
  std::fill(to, to + packed.numel(), int8_t{0});
  for (int64_t n = 0; n < columns; ++n) {
    int32_t total = 0;
    int8_t* panel = to + n / kInt8Columns * kInt8Columns * padded;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t place = k / kInt8Depth * kInt8Columns + n % kInt8Columns;
      panel[place * kInt8Depth + k % kInt8Depth] = from[n * depth + k];
      total += from[n * depth + k];
    }
    totals[n] = total;
  }
}

// x (M, K) and out (M, N) in float32 or bfloat16; packed and sums from pack_int8; scales and bias
// in float32.
void linear_int8(const Tensor& x, Tensor out, const Tensor& packed, const Tensor& sums,
                 const Tensor& scales, const Tensor& bias) {
  const int64_t rows = x.size(0), depth = x.size(1), columns = out.size(1);
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK((bfloat16 || x.scalar_type() == ScalarType::Float) &&
                      out.scalar_type() == x.scalar_type() && x.is_contiguous() &&
                      out.is_contiguous() && out.size(0) == rows,
                  "linear_int8: expected contiguous x and out of one dtype");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Char && packed.is_contiguous() &&
                      packed.numel() == round_up(columns, kInt8Columns) *
                                            round_up(depth, kInt8Depth) &&
                      sums.scalar_type() == ScalarType::Int && sums.numel() == columns,
                  "linear_int8: expected weights from pack_int8");
  for (const Tensor* t : {&scales, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == columns &&
                        t->is_contiguous(),
                    "linear_int8: expected float32 scales and bias");
  }
  const LinearInt8 call{x.const_data_ptr(), out.mutable_data_ptr(), bfloat16, rows,
                        {depth, columns, static_cast<const int8_t*>(packed.const_data_ptr()),
                         static_cast<const int32_t*>(sums.const_data_ptr()),
                         static_cast<const float*>(scales.const_data_ptr()),
                         static_cast<const float*>(bias.const_data_ptr())}};
  const LinearRows multiply = DAFAST_FOR_ISA(linear_rows);
  STD_TORCH_CHECK(multiply, "linear_int8: this CPU has neither AVX2 nor ARM's dot products");
  for_ranges(rows, kInt8Unit, kInt8Rows, [&](Ranges& ranges) {
    std::vector<uint8_t> scratch(static_cast<size_t>(int8_scratch(depth)));
    int64_t begin, end;
    while (ranges.take(begin, end)) multiply(call, begin, end - begin, scratch.data());
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(linear_int8, m) {
  m.def(
      "linear_int8(Tensor x, Tensor(a!) out, Tensor packed, Tensor sums, Tensor scales,"
      " Tensor bias) -> ()");
  m.def("pack_int8(Tensor weight, Tensor(a!) packed, Tensor(b!) sums) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("pack_int8", TORCH_BOX(&dafast::cpu::pack_int8));
  m.impl("linear_int8", TORCH_BOX(&dafast::cpu::linear_int8));
}
