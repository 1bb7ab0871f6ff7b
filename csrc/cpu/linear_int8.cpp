#include "linear_int8.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "isa.h"
#include "rows.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// weight (N, K) int8, contiguous, into `packed` and its sums (N) int32.
void pack_int8(const Tensor& weight, Tensor packed, Tensor sums) {
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const int64_t padded = round_up(depth, kInt8Depth);
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Char && weight.is_contiguous() &&
                      packed.numel() == round_up(columns, kInt8Columns) * padded &&
                      packed.scalar_type() == ScalarType::Char && packed.is_contiguous() &&
                      sums.scalar_type() == ScalarType::Int && sums.numel() == columns,
                  "pack_int8: other shapes or dtypes expected");
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

// x (M, K) and out (M, N), float32 or bfloat16; the rest as pack_int8 makes it, scales and bias
// float32.
void linear_int8(const Tensor& x, Tensor out, const Tensor& packed, const Tensor& sums,
                 const Tensor& scales, const Tensor& bias) {
  const int64_t rows = x.size(0), depth = x.size(1), columns = out.size(1);
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK((bfloat16 || x.scalar_type() == ScalarType::Float) &&
                      out.scalar_type() == x.scalar_type() && x.is_contiguous() &&
                      out.is_contiguous() && out.size(0) == rows,
                  "linear_int8: contiguous x and out of one dtype expected");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Char && packed.is_contiguous() &&
                      packed.numel() == round_up(columns, kInt8Columns) *
                                            round_up(depth, kInt8Depth) &&
                      sums.scalar_type() == ScalarType::Int && sums.numel() == columns,
                  "linear_int8: weights as pack_int8 makes them expected");
  for (const Tensor* t : {&scales, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == columns &&
                        t->is_contiguous(),
                    "linear_int8: float32 scales and bias expected");
  }
  const LinearInt8 call{x.const_data_ptr(), out.mutable_data_ptr(), bfloat16, rows, depth, columns,
                        static_cast<const int8_t*>(packed.const_data_ptr()),
                        static_cast<const int32_t*>(sums.const_data_ptr()),
                        static_cast<const float*>(scales.const_data_ptr()),
                        static_cast<const float*>(bias.const_data_ptr())};
#ifdef DAFAST_X86
  if (isa() >= Isa::avx512) {
    return parallel_for((rows + kInt8Rows - 1) / kInt8Rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> scratch(static_cast<size_t>(kInt8Rows * round_up(depth, kInt8Depth)));
      linear_int8_avx512(call, begin, end, scratch.data());
    });
  }
#endif
  STD_TORCH_CHECK(false, "linear_int8: this CPU has no AVX-512 with VNNI");
}

}  // namespace
}  // namespace dafast::cpu

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("pack_int8", TORCH_BOX(&dafast::cpu::pack_int8));
  m.impl("linear_int8", TORCH_BOX(&dafast::cpu::linear_int8));
}
