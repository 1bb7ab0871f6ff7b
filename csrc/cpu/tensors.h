// Checks of tensors, and sums, that several ops for the CPU share.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "dafast/numbers.h"

namespace dafast::cpu {

inline Dtype float_dtype_of(const torch::stable::Tensor& x, const char* op) {
  switch (x.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return Dtype::float32;
    case torch::headeronly::ScalarType::Half:
      return Dtype::float16;
    case torch::headeronly::ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float16 or bfloat16");
  }
}

// The data of a contiguous float32 tensor of `count` elements.
inline float* float_data_of(const torch::stable::Tensor& x, int64_t count, const char* op) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.numel() == count &&
                      x.scalar_type() == torch::headeronly::ScalarType::Float,
                  op, ": expected a contiguous float32 tensor of ", count, " elements");
  return const_cast<float*>(static_cast<const float*>(x.const_data_ptr()));
}

// The memory of a contiguous result like `x`.
inline void* out_data_of(const torch::stable::Tensor& out, const torch::stable::Tensor& x,
                         const char* op) {
  STD_TORCH_CHECK(out.is_cpu() && out.is_contiguous() && out.numel() == x.numel() &&
                      out.scalar_type() == x.scalar_type(),
                  op, ": expected a contiguous CPU tensor for out, in the dtype of the input");
  return const_cast<void*>(out.const_data_ptr());
}

// Vectors (C) as float32, one after the other, each padded with zeros to `width`.
inline std::vector<float> vectors_of(std::initializer_list<const torch::stable::Tensor*> tensors,
                                     int64_t channels, int64_t width, const char* op) {
  std::vector<float> out(tensors.size() * width, 0.0f);
  float* to = out.data();
  for (const torch::stable::Tensor* x : tensors) {
    STD_TORCH_CHECK(x->is_cpu() && x->dim() == 1 && x->size(0) == channels, op,
                    ": expected CPU vectors of ", channels, " elements");
    const Dtype dtype = float_dtype_of(*x, op);
    const void* from = x->const_data_ptr();
    for (int64_t i = 0; i < channels; ++i) {
      const int64_t at = i * x->stride(0);
      to[i] = dtype == Dtype::float32    ? static_cast<const float*>(from)[at]
              : dtype == Dtype::bfloat16 ? to_float(static_cast<const bfloat16*>(from)[at])
                                         : to_float(static_cast<const float16*>(from)[at]);
    }
    to += width;
  }
  return out;
}

// Rows in a part that is summed separately; there are at most 64 parts.
inline int64_t part_of(int64_t rows) { return std::max<int64_t>(16, (rows + 63) / 64); }

// out[c] = sum over the parts, always in the same order.
inline void sum_parts(const float* partial, int64_t parts, int64_t stride, int64_t channels,
                      float* out) {
  std::fill(out, out + channels, 0.0f);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t c = 0; c < channels; ++c) out[c] += partial[part * stride + c];
  }
}

}  // namespace dafast::cpu
