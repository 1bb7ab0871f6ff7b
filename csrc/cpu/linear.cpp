// Products of a linear layer in float32 on the CPU, for training: the layer and its gradients.
// The right side is packed first, as in linear_packed.cpp; threads take pieces of the result.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "../registry.h"
#include "aten_pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

// left (M, depth) times right, in panels [columns / 32][depth][32], plus bias, to out (M, columns).
struct LinearProduct {
  const float *left, *right, *bias, *zeros;
  float* out;
  int64_t depth, columns;
};

// left (tokens, rows) transposed times right, in panels [columns / 32][tokens][32]: the gradient of the
// weights if left is the gradient of the result and right is x. `transposed` if they are exchanged;
// the weights are (columns, rows) then. The sum of the gradient over the tokens goes to bias.
struct LinearGradient {
  const float *left, *right, *zeros;
  float *weight, *bias;
  int64_t tokens, rows, columns;
  bool transposed;
};

constexpr int64_t kPart = 384;  // terms of a sum that are added at a time

// The columns of a product that rows pass through together; the second-level cache holds kPart terms
// of them.
constexpr int64_t kGroupColumns = 256;

// A block of the gradient of the weights.
constexpr int64_t kGradientRows = 48, kGradientColumns = 384;

inline int64_t gradient_floats() {
  return kGradientRows * (kGradientColumns + kPart) + kGradientColumns;
}

using LinearRows = void (*)(const LinearProduct& call, int64_t row, int64_t rows, float* scratch);
using LinearBlock = void (*)(const LinearGradient& call, int64_t row, int64_t column,
                             float* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "linear_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "linear";

// A matrix (depth, columns) with any strides to panels [columns / 32][depth][32].
std::unique_ptr<float[]> pack_panels(const float* from, int64_t row_stride, int64_t column_stride,
                                     int64_t depth, int64_t columns) {
  std::unique_ptr<float[]> packed(new float[static_cast<size_t>(depth * columns)]);
  if (column_stride == 1) {  // rows one after the other, which are read as they lie in memory
    constexpr int64_t kRows = 16;
    for_aten_pieces((depth + kRows - 1) / kRows, [&](Pieces& pieces) {
      int64_t piece;
      while (pieces.take(piece)) {
        const int64_t first = piece * kRows, last = std::min(depth, first + kRows);
        for (int64_t column = 0; column < columns; column += kColumns) {
          float* const to = packed.get() + column * depth;
          for (int64_t d = first; d < last; ++d) {
            std::memcpy(to + d * kColumns, from + d * row_stride + column,
                        kColumns * sizeof(float));
          }
        }
      }
    });
    return packed;
  }
  for_aten_pieces(columns / kColumns, [&](Pieces& pieces) {
    int64_t panel;
    while (pieces.take(panel)) {
      const float* const start = from + panel * kColumns * column_stride;
      float* const to = packed.get() + panel * kColumns * depth;
      // Whole lines of the target, and as many values of each line of the source.
      constexpr int64_t kBlock = 16;
      for (int64_t first = 0; first < depth; first += kBlock) {
        const int64_t last = std::min(depth, first + kBlock);
        for (int64_t n = 0; n < kColumns; ++n) {
          for (int64_t d = first; d < last; ++d) {
            to[d * kColumns + n] = start[d * row_stride + n * column_stride];
          }
        }
      }
    }
  });
  return packed;
}

// out (M, N) = left (M, K) right + bias (N); right is (K, N), and (N, K) if `transposed`. All
// contiguous float32, N a multiple of 32.
void linear(const Tensor& left, const Tensor& right, std::optional<Tensor> bias, bool transposed,
            Tensor out) {
  STD_TORCH_CHECK(left.dim() == 2 && right.dim() == 2 && out.dim() == 2, kOp,
                  ": expected matrices");
  const int64_t rows = left.size(0), depth = left.size(1), columns = out.size(1);
  STD_TORCH_CHECK(right.size(!transposed) == columns && right.size(transposed) == depth &&
                      out.size(0) == rows && columns % kColumns == 0,
                  kOp, ": expected (M, K), weights and (M, N) with a multiple of ", kColumns);
  if (out.numel() == 0) return;
  const std::vector<float> zeros(static_cast<size_t>(columns));
  const std::unique_ptr<float[]> packed =
      pack_panels(float_data_of(right, depth * columns, kOp), transposed ? 1 : columns,
                  transposed ? depth : 1, depth, columns);
  const LinearProduct call{float_data_of(left, rows * depth, kOp), packed.get(),
                           bias.has_value() ? float_data_of(*bias, columns, kOp) : zeros.data(),
                           zeros.data(), float_data_of(out, rows * columns, kOp), depth, columns};
  const LinearRows multiply = DAFAST_FOR_ISA(linear_rows);
  for_aten_ranges(rows, kRowLeast, kRowGroup, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(kRowUnit * depth)]());
    int64_t begin, end;
    while (ranges.take(begin, end)) multiply(call, begin, end - begin, scratch.get());
  });
}

// grad (M, N) and x (M, K) to weight (N, K) and bias (N). All contiguous float32, N and K multiples of
// 32. The narrower one is packed.
void linear_backward(const Tensor& grad, const Tensor& x, Tensor weight, Tensor bias) {
  STD_TORCH_CHECK(grad.dim() == 2 && x.dim() == 2 && grad.size(0) == x.size(0), kOp,
                  ": expected matrices of as many rows");
  const int64_t tokens = x.size(0);
  const bool transposed = x.size(1) > grad.size(1);
  const Tensor& left = transposed ? x : grad;
  const Tensor& right = transposed ? grad : x;
  const int64_t rows = left.size(1), columns = right.size(1);
  STD_TORCH_CHECK(rows % kColumns == 0 && columns % kColumns == 0, kOp,
                  ": expected multiples of ", kColumns);
  const std::unique_ptr<float[]> packed =
      pack_panels(float_data_of(right, tokens * columns, kOp), columns, 1, tokens, columns);
  const std::vector<float> zeros(kColumns);
  const LinearGradient call{float_data_of(left, tokens * rows, kOp), packed.get(), zeros.data(),
                            float_data_of(weight, rows * columns, kOp),
                            float_data_of(bias, grad.size(1), kOp), tokens, rows, columns,
                            transposed};
  const LinearBlock add = DAFAST_FOR_ISA(linear_gradient);
  const int64_t across = (columns + kGradientColumns - 1) / kGradientColumns;
  const int64_t down = (rows + kGradientRows - 1) / kGradientRows;
  for_aten_pieces(down * across, [&](Pieces& pieces) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(gradient_floats())]);
    int64_t piece;
    while (pieces.take(piece)) {
      add(call, piece / across * kGradientRows, piece % across * kGradientColumns, scratch.get());
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(linear, m) {
  m.def("linear(Tensor left, Tensor right, Tensor? bias, bool transposed, Tensor(a!) out) -> ()");
  m.def("linear_backward(Tensor grad, Tensor x, Tensor(a!) weight, Tensor(b!) bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("linear", TORCH_BOX(&dafast::cpu::linear));
  m.impl("linear_backward", TORCH_BOX(&dafast::cpu::linear_backward));
}
