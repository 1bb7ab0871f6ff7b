// Bias and exact GELU on the CPU, each tensor read and written once.
//
// The result has the same bits for any number of threads: the gradient of the bias is summed over
// parts whose bounds depend only on the sizes.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../registry.h"
#include "tensors.h"

namespace dafast::cpu {

// Contiguous, (rows, channels).
struct GeluTensor {
  const void* data;
  Dtype dtype;
  int64_t rows, channels;
};

}  // namespace dafast::cpu

#define DAFAST_KERNELS "bias_gelu_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "bias_gelu";

GeluTensor view_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.dim() > 0 && x.numel() > 0, kOp,
                  ": expected a contiguous, non-empty CPU tensor (..., C)");
  const int64_t channels = x.size(x.dim() - 1);
  return {x.const_data_ptr(), float_dtype_of(x, kOp), x.numel() / channels, channels};
}

void forward(const Tensor& x, const Tensor& bias, bool added, Tensor out) {
  const GeluTensor view = view_of(x);
  const std::vector<float> vector = vectors_of({&bias}, view.channels, view.channels, kOp);
  void* const to = out_data_of(out, x, kOp);
  const auto gelu = DAFAST_FOR_ISA(gelu);
  // Whole blocks for each thread, so that their bounds do not depend on the number of threads.
  constexpr int64_t block = 1024;
  const int64_t size = x.numel(), blocks = (size + block - 1) / block;
  torch::stable::parallel_for(0, blocks, 8, [&](int64_t begin, int64_t end) {
    gelu(view, added ? nullptr : vector.data(), begin * block, std::min(size, end * block), to);
  });
}

void backward(const Tensor& grad, const Tensor& x, const Tensor& bias, bool added, Tensor out,
              Tensor sums) {
  const GeluTensor view = view_of(x), ahead = view_of(grad);
  STD_TORCH_CHECK(ahead.rows == view.rows && ahead.channels == view.channels, kOp,
                  ": expected a gradient of the shape of x");
  std::vector<float> vector = vectors_of({&bias}, view.channels, view.channels, kOp);
  if (added) std::fill(vector.begin(), vector.end(), 0.0f);
  void* const to = out_data_of(out, x, kOp);
  const int64_t part = part_of(view.rows), parts = (view.rows + part - 1) / part;
  std::vector<float> partial(static_cast<size_t>(parts * view.channels));
  const auto gelu_gradient = DAFAST_FOR_ISA(gelu_gradient);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      gelu_gradient(view, ahead, vector.data(), i * part, std::min(view.rows, (i + 1) * part), to,
                    &partial[i * view.channels]);
    }
  });
  sum_parts(partial.data(), parts, view.channels, view.channels,
            float_data_of(sums, view.channels, kOp));
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(bias_gelu, m) {
  m.def("bias_gelu(Tensor x, Tensor bias, bool added, Tensor(a!) out) -> ()");
  m.def(
      "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool added, Tensor(a!) out,"
      " Tensor(b!) sums) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("bias_gelu", TORCH_BOX(&dafast::cpu::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&dafast::cpu::backward));
}
