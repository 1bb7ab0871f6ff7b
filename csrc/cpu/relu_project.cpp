// ReLU and a 1x1 convolution to one channel on the CPU, and the gradients, each map read once.
//
// The result has the same bits for any number of threads: gradients are summed over parts whose
// bounds depend only on the sizes.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../registry.h"
#include "tensors.h"

namespace dafast::cpu {

// Contiguous, (rows, channels); a multiple of kPadding channels, at most kMostChannels.
struct ProjectedRows {
  const void* data;
  Dtype dtype;
  int64_t channels;
};

constexpr int64_t kMostChannels = 512;

}  // namespace dafast::cpu

#define DAFAST_KERNELS "relu_project_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "relu_project";

ProjectedRows rows_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.dim() == 2, kOp,
                  ": expected a contiguous CPU tensor (rows, C)");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(channels > 0 && channels % kPadding == 0 && channels <= kMostChannels, kOp,
                  ": expected a multiple of ", kPadding, " channels, at most ", kMostChannels);
  return {x.const_data_ptr(), float_dtype_of(x, kOp), channels};
}

// x (rows, C); weight (C), bias (1) and out (rows) float32.
void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor out) {
  const ProjectedRows rows = rows_of(x);
  const float* const vector = float_data_of(weight, rows.channels, kOp);
  const float offset = *float_data_of(bias, 1, kOp);
  float* const to = float_data_of(out, x.size(0), kOp);
  const auto project = DAFAST_FOR_ISA(project);
  torch::stable::parallel_for(0, x.size(0), 1024, [&](int64_t begin, int64_t end) {
    project(rows, vector, offset, begin, end, to);
  });
}

// grad (rows) and x to the gradients of x, of the weight (C) and of the bias (1).
void backward(const Tensor& grad, const Tensor& x, const Tensor& weight, Tensor out, Tensor sums,
              Tensor sum) {
  const ProjectedRows rows = rows_of(x);
  const int64_t count = x.size(0), channels = rows.channels;
  const float* const vector = float_data_of(weight, channels, kOp);
  const float* const ahead = float_data_of(grad, count, kOp);
  void* const to = out_data_of(out, x, kOp);
  const int64_t part = part_of(count), parts = (count + part - 1) / part;
  std::vector<float> partial(static_cast<size_t>(parts * (channels + 1)));
  const auto project_gradient = DAFAST_FOR_ISA(project_gradient);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      project_gradient(rows, vector, ahead, i * part, std::min(count, (i + 1) * part), to,
                       &partial[i * (channels + 1)]);
    }
  });
  sum_parts(partial.data(), parts, channels + 1, channels, float_data_of(sums, channels, kOp));
  sum_parts(partial.data() + channels, parts, channels + 1, 1, float_data_of(sum, 1, kOp));
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(relu_project, m) {
  m.def("relu_project(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out) -> ()");
  m.def(
      "relu_project_backward(Tensor grad, Tensor x, Tensor weight, Tensor(a!) out, Tensor(b!) sums,"
      " Tensor(c!) sum) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("relu_project", TORCH_BOX(&dafast::cpu::forward));
  m.impl("relu_project_backward", TORCH_BOX(&dafast::cpu::backward));
}
