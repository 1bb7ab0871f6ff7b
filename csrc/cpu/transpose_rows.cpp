// Exchanges the second and third dimension of a tensor whose rows stay contiguous, on the CPU.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>

#include "../registry.h"
#include "pieces.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

// x (A, B, C, D) to out (A, C, B, D), contiguous and of one dtype.
void transpose_rows(const Tensor& x, Tensor out) {
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4 && x.is_contiguous() && out.is_contiguous() &&
                      x.scalar_type() == out.scalar_type() && out.size(0) == x.size(0) &&
                      out.size(1) == x.size(2) && out.size(2) == x.size(1) &&
                      out.size(3) == x.size(3),
                  "transpose_rows: expected contiguous x (A, B, C, D) and out (A, C, B, D)");
  const int64_t b = x.size(1), c = x.size(2), run = x.size(3) * x.element_size();
  const auto* const from = static_cast<const std::byte*>(x.const_data_ptr());
  auto* const to = static_cast<std::byte*>(out.mutable_data_ptr());
  if (x.numel() == 0) return;
  // At most 64 KB are a piece.
  const int64_t most = std::max<int64_t>(1, 65536 / (b * run));
  for_ranges(x.size(0) * c, 1, most, [&](Ranges& ranges) {
    int64_t begin, end;
    while (ranges.take(begin, end)) {
      for (int64_t i = begin; i < end; ++i) {
        const std::byte* row = from + (i / c * b * c + i % c) * run;
        for (int64_t j = 0; j < b; ++j, row += c * run) {
          memcpy(to + (i * b + j) * run, row, static_cast<size_t>(run));
        }
      }
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(transpose_rows, m) { m.def("transpose_rows(Tensor x, Tensor(a!) out) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("transpose_rows", TORCH_BOX(&dafast::cpu::transpose_rows));
}
