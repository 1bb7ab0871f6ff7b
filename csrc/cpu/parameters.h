// Parameters of several layers in one tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace dafast::cpu {

struct RowNorm {
  const float *weight, *bias;
  float eps;
};

// Returns the parameters of one part after the other.
template <typename T>
class Parameters {
 public:
  // An element of x has `parts` of T.
  Parameters(const torch::stable::Tensor& x, const char* op, int64_t parts = 1)
      : at_(static_cast<const T*>(x.const_data_ptr())), left_(x.numel() * parts), op_(op) {
    STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), op, ": expected contiguous parameters");
  }

  const T* take(int64_t size) {
    left_ -= size;
    STD_TORCH_CHECK(left_ >= 0, op_, ": too few parameters");
    at_ += size;
    return at_ - size;
  }

  // A LayerNorm: weight, bias and eps.
  RowNorm norm(int64_t channels) {
    const T* weight = take(channels);
    const T* bias = take(channels);
    return {weight, bias, *take(1)};
  }

  void finish() const { STD_TORCH_CHECK(left_ == 0, op_, ": too many parameters"); }

 private:
  const T* at_;
  int64_t left_;
  const char* op_;
};

}  // namespace dafast::cpu
