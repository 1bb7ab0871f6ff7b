// Feature alignment on the CPU: dot product and both norms of a token from one read of both maps,
// and a backward that reads both once more.
//
// The result has the same bits for any number of threads: sums are taken over parts of fixed size.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../registry.h"
#include "tensors.h"

namespace dafast::cpu {

// Student and teacher, (batch, tokens, channels); strides in elements. A row is one token.
struct Features {
  const void* values[2];
  Dtype dtypes[2];
  int64_t strides[2][3];
  int64_t tokens, rows, channels;

  int64_t at(int which, int64_t row) const {
    return row / tokens * strides[which][0] + row % tokens * strides[which][1];
  }
};

// Over some rows: the sum of 1 - cosine of the rows that take part, and their number.
struct Alignment {
  double sum;
  int64_t kept;
};

constexpr float kMinNorm = 1e-8f;  // as in torch.nn.functional.cosine_similarity
constexpr float kLeftOut = 2.0f;   // marks a cosine above the margin

}  // namespace dafast::cpu

#define DAFAST_KERNELS "feature_alignment_loss_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "feature_alignment_loss";
constexpr int64_t kPart = 32;  // rows of one work item

Features features_of(const Tensor& student, const Tensor& teacher) {
  Features features{};
  const Tensor* tensors[2] = {&student, &teacher};
  for (int i = 0; i < 2; ++i) {
    const Tensor& x = *tensors[i];
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.size(0) == student.size(0) &&
                        x.size(1) == student.size(1) && x.size(2) == student.size(2),
                    kOp, ": expected CPU tensors (B, N, C) of one shape");
    features.values[i] = x.const_data_ptr();
    features.dtypes[i] = float_dtype_of(x, kOp);
    for (int d = 0; d < 3; ++d) features.strides[i][d] = x.stride(d);
  }
  features.tokens = student.size(1);
  features.rows = student.size(0) * student.size(1);
  features.channels = student.size(2);
  return features;
}

void forward(const Tensor& student, const Tensor& teacher, double margin, bool kept_only,
             Tensor loss, Tensor stats, Tensor weight) {
  const Features features = features_of(student, teacher);
  float* const rows = float_data_of(stats, 3 * features.rows, kOp);
  const auto compare_rows = DAFAST_FOR_ISA(compare_rows);
  const int64_t parts = (features.rows + kPart - 1) / kPart;
  std::vector<Alignment> found(static_cast<size_t>(parts));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      compare_rows(features, static_cast<float>(margin), part * kPart,
                   std::min(features.rows, (part + 1) * kPart), rows, &found[part]);
    }
  });
  Alignment all{};
  for (const Alignment& part : found) {
    all.sum += part.sum;
    all.kept += part.kept;
  }
  const int64_t divisor = std::max<int64_t>(1, kept_only ? all.kept : features.rows);
  *float_data_of(loss, 1, kOp) = static_cast<float>(all.sum / static_cast<double>(divisor));
  *float_data_of(weight, 1, kOp) = static_cast<float>(1.0 / static_cast<double>(divisor));
}

void backward(const Tensor& grad, const Tensor& student, const Tensor& teacher,
              const Tensor& stats, const Tensor& weight, Tensor out) {
  const Features features = features_of(student, teacher);
  const float* const rows = float_data_of(stats, 3 * features.rows, kOp);
  const float factor = *float_data_of(grad, 1, kOp) * *float_data_of(weight, 1, kOp);
  void* const to = out_data_of(out, student, kOp);
  const auto write_gradient = DAFAST_FOR_ISA(write_gradient);
  torch::stable::parallel_for(0, features.rows, kPart, [&](int64_t begin, int64_t end) {
    write_gradient(features, rows, factor, begin, end, to);
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(feature_alignment_loss, m) {
  m.def(
      "feature_alignment_loss(Tensor student, Tensor teacher, float margin, bool kept_only,"
      " Tensor(a!) loss, Tensor(b!) stats, Tensor(c!) weight) -> ()");
  m.def(
      "feature_alignment_loss_backward(Tensor grad, Tensor student, Tensor teacher, Tensor stats,"
      " Tensor weight, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("feature_alignment_loss", TORCH_BOX(&dafast::cpu::forward));
  m.impl("feature_alignment_loss_backward", TORCH_BOX(&dafast::cpu::backward));
}
