// Bicubic resize on the CPU, with the arithmetic of dafast/resize_bicubic.h.
#include "dafast/resize_bicubic.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "../registry.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
void resize(const Tensor& x, Tensor& out) {
  const int64_t channels = x.size(1);
  const int64_t height = out.size(2);
  const int64_t width = out.size(3);
  const dafast::CubicColumns columns(x.size(3), width);
  const T* source = static_cast<const T*>(x.const_data_ptr());
  float* target = static_cast<float*>(out.mutable_data_ptr());
  const int64_t batch_stride = x.stride(0);
  const int64_t channel_stride = x.stride(1);
  const int64_t row_stride = x.stride(2);
  const int64_t column_stride = x.stride(3);
  const int64_t source_height = x.size(2);

  // The rows of all planes form one range. A chunk resizes up to three rows that its neighbour also
  // resizes, so chunks are not small.
  const int64_t grain = std::max<int64_t>(16, 65536 / std::max<int64_t>(width, 1));
  torch::stable::parallel_for(
      0, x.size(0) * channels * height, grain, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t plane = begin / height;
          const int64_t first = begin - plane * height;
          const int64_t last = std::min(height, first + (end - begin));
          const dafast::Plane<T> view{source + (plane / channels) * batch_stride +
                                          (plane % channels) * channel_stride,
                                      source_height, row_stride, column_stride};
          dafast::resize_bicubic_rows(view, columns, height, first, last, target + begin * width);
          begin += last - first;
        }
      });
}

// (B, C, H, W) float32 or uint8, any strides -> (B, C, height, width) float32, contiguous.
Tensor resize_bicubic(const Tensor& x, int64_t height, int64_t width) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 4, "resize_bicubic: expected a CPU tensor (B, C, H, W)");
  STD_TORCH_CHECK(x.size(2) > 0 && x.size(3) > 0 && height > 0 && width > 0,
                  "resize_bicubic: sizes must be positive");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), height, width},
                                        ScalarType::Float);
  if (out.numel() == 0) return out;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      resize<float>(x, out);
      break;
    case ScalarType::Byte:
      resize<uint8_t>(x, out);
      break;
    default:
      STD_TORCH_CHECK(false, "resize_bicubic: expected float32 or uint8");
  }
  return out;
}

}  // namespace

DAFAST_OP(resize_bicubic, m) {
  m.def("resize_bicubic(Tensor x, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("resize_bicubic", TORCH_BOX(&resize_bicubic));
}
