// A 3x3 convolution in int8 on the CPU: maps are rounded to 256 levels where they are read, a few rows at
// a time; see conv3x3_int8_kernels.h.
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
#include "int8_layer.h"
#include "pieces.h"

namespace dafast::cpu {

constexpr int64_t kStripRows = 4;  // rows of the result whose input shares one range
constexpr int64_t kConvColumns = 32;  // of a tile

// Maps (B, h, w, C) to (B, h', w', N), contiguous, all of one dtype; padding 1.
struct Conv3x3Int8 {
  const void* x;
  void* out;
  const void* add[2];  // like out, or null
  bool bfloat16;       // otherwise float32
  int64_t height, width, channels, stride, out_height, out_width, columns;
  const int8_t* weights;  // panels of 32 columns, [9 C / 4][32][4]
  const int32_t* sums;    // (N), of the weights of a column
  const float* scales;    // (N)
  const float* bias;      // (N)
  bool relu_input, relu;
  int64_t row_pixels;     // of levels: with the borders, and those that the last tile reads beyond
};

inline int64_t conv_scratch_bytes(const Conv3x3Int8& call) {
  const int64_t rows = (kStripRows - 1) * call.stride + 3;
  return (rows * call.row_pixels * call.channels + 64) * kLevelBytes;
}

// The strip of image b whose first row is y.
using ConvStrip = void (*)(const Conv3x3Int8& call, int64_t b, int64_t y, uint8_t* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "conv3x3_int8_kernels.h"
#define DAFAST_KERNELS_FOR_VNNI
#define DAFAST_KERNELS_FOR_DOTPROD
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// x (B, h, w, C), out, add and other (B, h', w', N), contiguous, float32 or bfloat16, C a multiple
// of 4; packed and sums from pack_int8 of weights (N, 3 * 3 * C); scales and bias float32.
void conv3x3_int8(const Tensor& x, Tensor out, const Tensor& packed, const Tensor& sums,
                  const Tensor& scales, const Tensor& bias, std::optional<Tensor> add,
                  std::optional<Tensor> other, int64_t stride, bool relu_input, bool relu) {
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4 && out.size(0) == x.size(0) && stride >= 1 &&
                      (bfloat16 || x.scalar_type() == ScalarType::Float),
                  "conv3x3_int8: expected maps (B, h, w, C) in float32 or bfloat16");
  Conv3x3Int8 call{x.const_data_ptr(), out.mutable_data_ptr(), {nullptr, nullptr}, bfloat16,
                   x.size(1), x.size(2), x.size(3), stride, out.size(1), out.size(2), out.size(3)};
  STD_TORCH_CHECK(call.channels % 4 == 0 && x.is_contiguous() && out.is_contiguous() &&
                      out.scalar_type() == x.scalar_type() &&
                      call.out_height == (call.height - 1) / stride + 1 &&
                      call.out_width == (call.width - 1) / stride + 1,
                  "conv3x3_int8: unsupported layout or dtype");
  const int64_t panels = (call.columns + kConvColumns - 1) / kConvColumns;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Char && packed.is_contiguous() &&
                      packed.numel() == panels * kConvColumns * 9 * call.channels &&
                      sums.scalar_type() == ScalarType::Int && sums.numel() == call.columns,
                  "conv3x3_int8: expected weights from pack_int8");
  for (const Tensor* t : {&scales, &bias}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == call.columns &&
                        t->is_contiguous(),
                    "conv3x3_int8: expected float32 scales and bias");
  }
  int count = 0;
  for (const std::optional<Tensor>* t : {&add, &other}) {
    if (!t->has_value()) continue;
    STD_TORCH_CHECK((*t)->is_contiguous() && (*t)->numel() == out.numel() &&
                        (*t)->scalar_type() == x.scalar_type(),
                    "conv3x3_int8: expected maps to add like the result");
    call.add[count++] = (*t)->const_data_ptr();
  }
  if (out.numel() == 0) return;
  call.weights = static_cast<const int8_t*>(packed.const_data_ptr());
  call.sums = static_cast<const int32_t*>(sums.const_data_ptr());
  call.scales = static_cast<const float*>(scales.const_data_ptr());
  call.bias = static_cast<const float*>(bias.const_data_ptr());
  call.relu_input = relu_input, call.relu = relu;
  const int64_t pixels = DAFAST_FOR_ISA(kConvPixels);
  const int64_t tiles = (call.out_width + pixels - 1) / pixels;
  call.row_pixels = (tiles * pixels - 1) * stride + 3;
  const ConvStrip convolve = DAFAST_FOR_ISA(convolve_strip);
  STD_TORCH_CHECK(convolve, "conv3x3_int8: this CPU has neither AVX2 nor ARM's dot products");
  const int64_t strips = (call.out_height + kStripRows - 1) / kStripRows;
  for_pieces(x.size(0) * strips, [&](Pieces& pieces) {
    const std::unique_ptr<uint8_t[]> scratch(
        new uint8_t[static_cast<size_t>(conv_scratch_bytes(call))]);
    int64_t piece;
    while (pieces.take(piece)) {
      convolve(call, piece / strips, piece % strips * kStripRows, scratch.get());
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(conv3x3_int8, m) {
  m.def(
      "conv3x3_int8(Tensor x, Tensor(a!) out, Tensor packed, Tensor sums, Tensor scales,"
      " Tensor bias, Tensor? add, Tensor? other, int stride, bool relu_input, bool relu) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("conv3x3_int8", TORCH_BOX(&dafast::cpu::conv3x3_int8));
}
