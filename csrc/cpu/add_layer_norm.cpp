// Residual add, LayerScale and LayerNorm on the CPU, a row at a time: intermediate values stay in
// the first-level cache.
//
// The result has the same bits for any number of threads: the gradients of the parameters are
// summed over parts whose bounds depend only on the sizes.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../registry.h"
#include "tensors.h"

namespace dafast::cpu {

constexpr int64_t kMaxChannels = 4096;  // of a row; buffers hold whole rows

// A contiguous tensor (rows, channels); data may be null if it is optional.
struct Rows {
  void* data;
  Dtype dtype;
};

// The vectors are float32, padded with zeros to whole lanes.
struct AddNorm {
  int64_t rows, channels;
  Rows x, branch, s, n;
  const float *gamma, *weight, *bias;
  float* stats;  // mean of all rows, then their inverse standard deviation
  float eps;
};

// Sums over the rows of a part: gradients of gamma, weight and bias, each of `width` elements.
struct AddNormBackward {
  int64_t rows, channels, width;
  Rows grad_s, grad_n, s, branch, grad_x, grad_branch;
  const float *gamma, *weight, *stats;
};

}  // namespace dafast::cpu

#define DAFAST_KERNELS "add_layer_norm_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "add_layer_norm";

Rows rows_of(const Tensor& x, const Tensor& like) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.dim() > 0 && x.numel() == like.numel() &&
                      x.size(x.dim() - 1) == like.size(like.dim() - 1),
                  kOp, ": expected contiguous CPU tensors (..., C) of one shape");
  return {const_cast<void*>(x.const_data_ptr()), float_dtype_of(x, kOp)};
}

Rows rows_of(const std::optional<Tensor>& x, const Tensor& like) {
  return x ? rows_of(*x, like) : Rows{nullptr, Dtype::float32};
}

int64_t channels_of(const Tensor& x) {
  const int64_t channels = x.size(x.dim() - 1);
  STD_TORCH_CHECK(channels > 0 && channels <= kMaxChannels, kOp, ": expected 1 to ",
                  kMaxChannels, " channels");
  return channels;
}

int64_t padded_width(int64_t channels) { return (channels + kPadding - 1) / kPadding * kPadding; }

// Least number of rows for a thread.
int64_t grain_of(int64_t channels) { return std::max<int64_t>(1, 16384 / channels); }

void forward(const Tensor& x, const Tensor& branch, const Tensor& gamma, const Tensor& weight,
             const Tensor& bias, double eps, Tensor s, Tensor n, Tensor stats) {
  const int64_t channels = channels_of(x), rows = x.numel() / channels;
  const int64_t width = padded_width(channels);
  const std::vector<float> vectors = vectors_of({&gamma, &weight, &bias}, channels, width, kOp);
  const AddNorm call{rows,
                     channels,
                     rows_of(x, x),
                     rows_of(branch, x),
                     rows_of(s, x),
                     rows_of(n, x),
                     vectors.data(),
                     vectors.data() + width,
                     vectors.data() + 2 * width,
                     float_data_of(stats, 2 * rows, kOp),
                     static_cast<float>(eps)};
  const auto normalise_rows = DAFAST_FOR_ISA(normalise_rows);
  torch::stable::parallel_for(0, rows, grain_of(channels), [&](int64_t begin, int64_t end) {
    normalise_rows(call, begin, end);
  });
}

// sums: (3, C), gradients of gamma, weight and bias.
void backward(std::optional<Tensor> grad_s, std::optional<Tensor> grad_n, const Tensor& s,
              const Tensor& branch, const Tensor& gamma, const Tensor& weight, const Tensor& stats,
              Tensor grad_x, Tensor grad_branch, Tensor sums) {
  const int64_t channels = channels_of(s), rows = s.numel() / channels;
  const int64_t width = padded_width(channels);
  const std::vector<float> vectors = vectors_of({&gamma, &weight}, channels, width, kOp);
  const AddNormBackward call{rows,
                             channels,
                             width,
                             rows_of(grad_s, s),
                             rows_of(grad_n, s),
                             rows_of(s, s),
                             rows_of(branch, s),
                             rows_of(grad_x, s),
                             rows_of(grad_branch, s),
                             vectors.data(),
                             vectors.data() + width,
                             float_data_of(stats, 2 * rows, kOp)};
  const int64_t part = part_of(rows), parts = (rows + part - 1) / part;
  std::vector<float> partial(static_cast<size_t>(parts * 3 * width));
  const auto write_gradients = DAFAST_FOR_ISA(write_gradients);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      write_gradients(call, i * part, std::min(rows, (i + 1) * part), &partial[i * 3 * width]);
    }
  });
  float* const out = float_data_of(sums, 3 * channels, kOp);
  for (int64_t k = 0; k < 3; ++k) {
    sum_parts(partial.data() + k * width, parts, 3 * width, channels, out + k * channels);
  }
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(add_layer_norm, m) {
  m.def(
      "add_layer_norm(Tensor x, Tensor branch, Tensor gamma, Tensor weight, Tensor bias, float eps,"
      " Tensor(a!) s, Tensor(b!) n, Tensor(c!) stats) -> ()");
  m.def(
      "add_layer_norm_backward(Tensor? grad_s, Tensor? grad_n, Tensor s, Tensor branch,"
      " Tensor gamma, Tensor weight, Tensor stats, Tensor(a!) grad_x, Tensor(b!) grad_branch,"
      " Tensor(c!) sums) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("add_layer_norm", TORCH_BOX(&dafast::cpu::forward));
  m.impl("add_layer_norm_backward", TORCH_BOX(&dafast::cpu::backward));
}
