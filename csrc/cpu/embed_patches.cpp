// The tokens of an image in float32 or bfloat16 on the CPU: the product of its patches with packed
// weights, plus position embeddings, and the first norm. A group of patches is gathered where it is
// multiplied, so there is no copy of the image in the order of the patches.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <memory>

#include "../registry.h"
#include "pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

// image (B, channels, side * rows, side * columns); tokens and normed (B, 1 + rows * columns, C).
struct EmbedPatches {
  const void* image;
  Dtype dtype;  // of image and normed
  int64_t batch, channels, rows, columns, side;
  FloatLayer layer;
  const float* positions;        // (1 + rows * columns, C); the first one is the first token
  const float *weight, *bias;    // of the norm, padded to blocks of lanes.h
  float eps;
  float* tokens;
  void* normed;
};

// Floats for a group of tokens, and two rows, padded to blocks of lanes.h.
inline int64_t embed_floats(const EmbedPatches& call) {
  const int64_t widest = std::max(call.layer.depth, call.layer.columns) + kColumns;
  return (kRowGroup + 2) * widest + kRowGroup * whole_panels(call.layer.columns);
}

// Up to kRowGroup tokens from `first` on, of all images in turn.
using EmbedGroup = void (*)(const EmbedPatches& call, int64_t first, int64_t count, float* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "embed_patches_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// image (B, c, H, W) and normed (B, 1 + N, C) of one dtype; packed from pack_linear of weights
// (C, c * side * side), their bias padded to whole panels; positions (1 + N, C), weight and bias of
// the norm, and tokens (B, 1 + N, C) in float32. Contiguous.
void embed_patches(const Tensor& image, const Tensor& packed, const Tensor& layer_bias,
                   const Tensor& positions, const Tensor& weight, const Tensor& bias, double eps,
                   int64_t side, Tensor tokens, Tensor normed) {
  constexpr const char* kOp = "embed_patches";
  const bool pairs = packed.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(image.dim() == 4 && image.is_contiguous() && side > 0 && positions.dim() == 2 &&
                      image.size(2) % side == 0 && image.size(3) % side == 0,
                  kOp, ": expected contiguous images of whole patches");
  const int64_t width = positions.size(1), depth = image.size(1) * side * side;
  EmbedPatches call{image.const_data_ptr(), float_dtype_of(image, kOp), image.size(0),
                    image.size(1), image.size(2) / side, image.size(3) / side, side};
  const int64_t count = 1 + call.rows * call.columns;
  STD_TORCH_CHECK((pairs || packed.scalar_type() == ScalarType::Float) && packed.is_contiguous() &&
                      packed.numel() == whole_panels(width) * cells_of(depth, pairs) * (1 + pairs),
                  kOp, ": expected weights from pack_linear");
  STD_TORCH_CHECK(normed.is_contiguous() && normed.scalar_type() == image.scalar_type() &&
                      normed.numel() == call.batch * count * width,
                  kOp, ": expected normed (B, 1 + N, C) in the dtype of the images");
  call.layer = {depth, width, static_cast<const float*>(packed.const_data_ptr()),
                float_data_of(layer_bias, whole_panels(width), kOp)};
  call.positions = float_data_of(positions, count * width, kOp);
  const std::vector<float> vectors =
      vectors_of({&weight, &bias}, width, whole_panels(width), kOp);
  call.weight = vectors.data(), call.bias = vectors.data() + whole_panels(width);
  call.eps = static_cast<float>(eps);
  call.tokens = float_data_of(tokens, call.batch * count * width, kOp);
  call.normed = normed.mutable_data_ptr();
  const EmbedGroup embed =
      pairs ? DAFAST_FOR_ISA(embed_group_pairs) : DAFAST_FOR_ISA(embed_group);
  STD_TORCH_CHECK(embed, kOp, ": weights in bfloat16 need AVX-512 with BF16");
  for_ranges(call.batch * count, kRowLeast, kRowGroup, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(embed_floats(call))]);
    int64_t begin, end;
    while (ranges.take(begin, end)) embed(call, begin, end - begin, scratch.get());
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(embed_patches, m) {
  m.def(
      "embed_patches(Tensor image, Tensor packed, Tensor layer_bias, Tensor positions,"
      " Tensor weight, Tensor bias, float eps, int side, Tensor(a!) tokens, Tensor(b!) normed)"
      " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("embed_patches", TORCH_BOX(&dafast::cpu::embed_patches));
}
