// A 3x3 convolution in float32 or bfloat16 on the CPU, from weights that are packed in advance, a few
// rows of the result at a time; see conv3x3_packed_kernels.h.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>

#include "../registry.h"
#include "pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

constexpr int64_t kStripFloats = 1 << 17;

// Maps (B, h, w, C) to (B, h', w', N), contiguous, all of one dtype; padding 1.
struct Conv3x3Packed {
  const void* x;
  void* out;
  const void* add[2];  // like out, or null
  Dtype dtype;
  bool pairs;  // of channels, in bfloat16; otherwise they are kept in float32
  int64_t height, width, channels, stride, out_height, out_width;
  FloatLayer layer;  // of depth 9 C
  bool relu_input, relu;
  int64_t strip;  // most rows of the result that are computed at once
};

// Cells of a pixel, and of a row with its borders.
inline int64_t pixel_cells(const Conv3x3Packed& call) { return cells_of(call.channels, call.pairs); }
inline int64_t row_cells(const Conv3x3Packed& call) { return (call.width + 2) * pixel_cells(call); }

// Floats for the input of a strip, the pixels that the last tile reads beyond it, and a row of it.
inline int64_t conv_floats(const Conv3x3Packed& call) {
  const int64_t rows = (call.strip - 1) * call.stride + 3;
  return rows * row_cells(call) + (kMostRows * call.stride + 2) * pixel_cells(call) +
         call.width * call.channels + kColumns;
}

// The rows [y, y + rows) of image b.
using PackedStrip = void (*)(const Conv3x3Packed& call, int64_t b, int64_t y, int64_t rows,
                             float* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "conv3x3_packed_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "conv3x3_packed";

// x (B, h, w, C), out, add and other (B, h', w', N), contiguous and of one dtype; packed from
// pack_linear of weights (N, 3 * 3 * C), with an even C in bfloat16; bias float32, padded to whole
// panels.
void conv3x3_packed(const Tensor& x, Tensor out, const Tensor& packed, const Tensor& bias,
                    std::optional<Tensor> add, std::optional<Tensor> other, int64_t stride,
                    bool relu_input, bool relu) {
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4 && out.size(0) == x.size(0) && stride >= 1 &&
                      x.is_contiguous() && out.is_contiguous() &&
                      out.scalar_type() == x.scalar_type(),
                  kOp, ": expected contiguous maps (B, h, w, C) of one dtype");
  const bool pairs = packed.scalar_type() == ScalarType::BFloat16;
  const int64_t depth = 9 * x.size(3), columns = out.size(3);
  Conv3x3Packed call{x.const_data_ptr(), out.mutable_data_ptr(), {nullptr, nullptr},
                     float_dtype_of(x, kOp), pairs, x.size(1), x.size(2), x.size(3), stride,
                     out.size(1), out.size(2)};
  STD_TORCH_CHECK(call.out_height == (call.height - 1) / stride + 1 &&
                      call.out_width == (call.width - 1) / stride + 1,
                  kOp, ": expected a result of the size of x over the stride");
  STD_TORCH_CHECK((pairs ? call.channels % 2 == 0 : packed.scalar_type() == ScalarType::Float) &&
                      packed.is_contiguous() &&
                      packed.numel() == whole_panels(columns) * depth,
                  kOp, ": expected weights from pack_linear");
  int count = 0;
  for (const std::optional<Tensor>* t : {&add, &other}) {
    if (!t->has_value()) continue;
    STD_TORCH_CHECK((*t)->is_contiguous() && (*t)->numel() == out.numel() &&
                        (*t)->scalar_type() == x.scalar_type(),
                    kOp, ": expected maps to add like the result");
    call.add[count++] = (*t)->const_data_ptr();
  }
  if (out.numel() == 0) return;
  call.layer = {depth, columns, static_cast<const float*>(packed.const_data_ptr()),
                float_data_of(bias, whole_panels(columns), kOp)};
  call.relu_input = relu_input, call.relu = relu;
  // The input of a strip stays in the second-level cache.
  call.strip = std::clamp<int64_t>(kStripFloats / row_cells(call) - 2, 1, 4);
  const PackedStrip convolve =
      pairs ? DAFAST_FOR_ISA(packed_strip_pairs) : DAFAST_FOR_ISA(packed_strip);
  STD_TORCH_CHECK(convolve, kOp, ": weights in bfloat16 need AVX-512 with BF16");
  for_ranges(x.size(0) * call.out_height, 1, call.strip, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(conv_floats(call))]);
    int64_t begin, end;
    while (ranges.take(begin, end)) {
      while (begin < end) {  // a range can lie in two images
        const int64_t b = begin / call.out_height, y = begin % call.out_height;
        const int64_t rows = std::min(end - begin, call.out_height - y);
        convolve(call, b, y, rows, scratch.get());
        begin += rows;
      }
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(conv3x3_packed, m) {
  m.def(
      "conv3x3_packed(Tensor x, Tensor(a!) out, Tensor packed, Tensor bias, Tensor? add,"
      " Tensor? other, int stride, bool relu_input, bool relu) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("conv3x3_packed", TORCH_BOX(&dafast::cpu::conv3x3_packed));
}
