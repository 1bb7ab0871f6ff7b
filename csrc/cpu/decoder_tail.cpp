// The decoder's tail on the CPU: bilinear upsampling (corners aligned), conv3x3, ReLU, conv1x1,
// activation, without the upsampled map in memory; see decoder_tail_kernels.h.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../registry.h"
#include "pieces.h"

namespace dafast::cpu {

constexpr int64_t kMostPixels = 16;  // most pixels that a kernel computes at once
constexpr int64_t kHidden = 32;  // channels between the two convolutions; fewer are padded with 0
constexpr int64_t kBlock = 96;   // columns of the result that are computed together
constexpr int64_t kBands = 6;
constexpr int64_t kBandFloats = 3 * kBlock * kHidden;

// Weights of the 3x3 convolution: [ky][kx][c][kHidden] in float32, or in bfloat16 with the channels
// in pairs, [ky][kx][c / 2][kHidden][2], the order of the instruction that multiplies them.
struct Tail {
  const void* x;  // (B, h, w, C), C a multiple of 16
  bool bfloat16;  // of x; otherwise float32
  int64_t channels, height, width;
  int64_t stride_n, stride_y, stride_x;
  int64_t out_height, out_width;
  const void* weights1;
  const float* bias1;    // kHidden
  const float* weights2;  // kHidden
  float bias2;
  float* out;  // (B, H, W), before the activation
};

// Memory for a range of rows.
struct TailScratch {
  float* row;       // pixels of the map under a block
  float* products;  // (9, these pixels, kHidden)
  float* bands;     // (kBands, 3, kBlock, kHidden)
  float* zeros;     // (kBlock, kHidden)
};

}  // namespace dafast::cpu

#define DAFAST_KERNELS "decoder_tail_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Most pixels of the map under a block, and those that the last tile reads beyond them.
int64_t most_pixels(const Tail& call) {
  const int64_t steps = std::max<int64_t>(1, call.out_width - 1);
  const int64_t under = (kBlock + 1) * (call.width - 1) / steps + 4;
  return std::min(call.width, under) + kMostPixels;
}

// Codes of the activations, as in dafast/ops/decoder_tail.py.
constexpr int64_t kRelu = 0, kSigmoid = 1, kExp = 2;

// x (B, C, h, w), channels last, C a multiple of 16; float32 or bfloat16. weight1 (N, C, 3, 3)
// contiguous in the dtype of x, N at most 32; the other parameters float32. out (B, 1, H, W).
void decoder_tail(const Tensor& x, Tensor out, const Tensor& weight1, const Tensor& bias1,
                  const Tensor& weight2, const Tensor& bias2, int64_t activation) {
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.dim() == 4 && (bfloat16 || x.scalar_type() == ScalarType::Float),
                  "decoder_tail: expected x (B, C, h, w) in float32 or bfloat16");
  const int64_t channels = x.size(1), hidden = weight1.size(0);
  STD_TORCH_CHECK(x.stride(1) == 1 && channels % 16 == 0 && hidden <= kHidden &&
                      weight1.scalar_type() == x.scalar_type() && weight1.is_contiguous() &&
                      weight1.numel() == hidden * channels * 9 && out.is_contiguous() &&
                      out.numel() == x.size(0) * out.size(2) * out.size(3),
                  "decoder_tail: unsupported layout");
  for (const Tensor* t : {&bias1, &weight2}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->is_contiguous() &&
                        t->numel() == hidden,
                    "decoder_tail: expected float32 parameters");
  }
  STD_TORCH_CHECK(activation >= kRelu && activation <= kExp,
                  "decoder_tail: unknown activation ", activation);
  if (out.numel() == 0) return;

  const bool pairs = bfloat16 && DAFAST_FOR_ISA(kPairs);
  const auto* floats = static_cast<const float*>(weight1.const_data_ptr());
  const auto* halves = static_cast<const uint16_t*>(weight1.const_data_ptr());
  std::vector<float> single(pairs ? 0 : 9 * channels * kHidden);
  std::vector<uint16_t> paired(pairs ? 9 * channels * kHidden : 0);
  for (int64_t n = 0; n < hidden; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < 9; ++k) {
        const int64_t from = (n * channels + c) * 9 + k;
        if (pairs) {
          paired[((k * (channels / 2) + c / 2) * kHidden + n) * 2 + c % 2] = halves[from];
        } else {
          single[(k * channels + c) * kHidden + n] =
              bfloat16 ? float_of(static_cast<uint32_t>(halves[from]) << 16) : floats[from];
        }
      }
    }
  }
  float bias[kHidden] = {}, last[kHidden] = {};
  std::copy_n(static_cast<const float*>(bias1.const_data_ptr()), hidden, bias);
  std::copy_n(static_cast<const float*>(weight2.const_data_ptr()), hidden, last);
  const Tail call{x.const_data_ptr(), bfloat16, channels, x.size(2), x.size(3), x.stride(0),
                  x.stride(2), x.stride(3), out.size(2), out.size(3),
                  pairs ? static_cast<const void*>(paired.data()) : single.data(), bias, last,
                  *static_cast<const float*>(bias2.const_data_ptr()),
                  static_cast<float*>(out.mutable_data_ptr())};
  const auto rows = DAFAST_FOR_ISA(tail_rows);
  const auto activate = [&](float* values, int64_t count) {
    if (activation == kSigmoid) {
      for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + std::exp(-values[i]));
    } else if (activation == kExp) {
      for (int64_t i = 0; i < count; ++i) values[i] = std::exp(values[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
    }
  };
  // Every range computes up to three rows of the map more than its own.
  for_ranges(x.size(0) * call.out_height, 24, 96, [&](Ranges& ranges) {
    const int64_t pixels = most_pixels(call);
    const int64_t sizes[] = {pixels * call.channels, 9 * pixels * kHidden, kBands * kBandFloats,
                             kBlock * kHidden};
    std::vector<float> memory(static_cast<size_t>(sizes[0] + sizes[1] + sizes[2] + sizes[3]));
    TailScratch scratch{memory.data()};
    scratch.products = scratch.row + sizes[0];
    scratch.bands = scratch.products + sizes[1];
    scratch.zeros = scratch.bands + sizes[2];
    int64_t begin, end;
    while (ranges.take(begin, end)) {
      rows(call, begin, end, scratch);
      activate(call.out + begin * call.out_width, (end - begin) * call.out_width);
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(decoder_tail, m) {
  m.def(
      "decoder_tail(Tensor x, Tensor(a!) out, Tensor weight1, Tensor bias1, Tensor weight2,"
      " Tensor bias2, int activation) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("decoder_tail", TORCH_BOX(&dafast::cpu::decoder_tail));
}
