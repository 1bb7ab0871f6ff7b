// The decoder's tail on the CPU: bilinear upsampling (corners aligned), conv3x3, ReLU, conv1x1,
// activation, without the upsampled map in memory; see decoder_tail_rows.h.
#include "decoder_tail.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <vector>

#include "decoder_tail_rows.h"
#include "isa.h"
#include "rows.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Portable {
  using Element = float;
  static constexpr int64_t kPixels = 1;

  static void mix(const float* a, const float* b, float weight, int64_t count, float* out) {
    blend(a, b, weight, count, out);
  }

  static void convolve(const Tail& call, const float* const window[3], int64_t offset,
                       const float* weights, float* values) {
    float sums[kHidden];
    std::memcpy(sums, call.bias1, sizeof sums);
    for (int ky = 0; ky < 3; ++ky) {
      const float* row = window[ky] + offset;
      for (int64_t k = 0; k < 3 * call.channels; ++k, weights += kHidden) {
        for (int64_t j = 0; j < kHidden; ++j) sums[j] += row[k] * weights[j];
      }
    }
    float sum = 0.0f;
    for (int64_t j = 0; j < kHidden; ++j) {
      sum += (sums[j] < 0.0f ? 0.0f : sums[j]) * call.weights2[j];  // NaN stays
    }
    values[0] = sum;
  }
};

}  // namespace

void tail_rows_portable(const Tail& call, int64_t begin, int64_t end, void* scratch) {
  call.bfloat16 ? tail_rows<Portable, uint16_t>(call, begin, end, scratch)
                : tail_rows<Portable, float>(call, begin, end, scratch);
}

int64_t tail_scratch(const Tail& call) {
  const int64_t rows = 4 * (call.out_width + kMostPixels + 2) + call.width;
  return rows * call.channels * static_cast<int64_t>(sizeof(float));
}

namespace {

TailRows choose(bool pairs) {
#ifdef DAFAST_X86
  if (pairs) return tail_rows_avx512_bf16;
  if (isa() >= Isa::avx512) return tail_rows_avx512;
  if (isa() >= Isa::avx2) return tail_rows_avx2;
#endif
  return tail_rows_portable;
}

// x (B, C, h, w), channels last, C a multiple of 16; float32 or bfloat16. weight1 (N, C, 3, 3)
// contiguous in the dtype of x, N at most 32; the other parameters float32. out (B, 1, H, W).
void decoder_tail(const Tensor& x, Tensor out, const Tensor& weight1, const Tensor& bias1,
                  const Tensor& weight2, const Tensor& bias2, bool sigmoid) {
  const bool bfloat16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.dim() == 4 && (bfloat16 || x.scalar_type() == ScalarType::Float),
                  "decoder_tail: x (B, C, h, w) in float32 or bfloat16 expected");
  const int64_t channels = x.size(1), hidden = weight1.size(0);
  STD_TORCH_CHECK(x.stride(1) == 1 && channels % 16 == 0 && hidden <= kHidden &&
                      weight1.scalar_type() == x.scalar_type() && weight1.is_contiguous() &&
                      weight1.numel() == hidden * channels * 9 && out.is_contiguous() &&
                      out.numel() == x.size(0) * out.size(2) * out.size(3),
                  "decoder_tail: a layout that is not supported");
  for (const Tensor* t : {&bias1, &weight2}) {
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->is_contiguous() &&
                        t->numel() == hidden,
                    "decoder_tail: float32 parameters expected");
  }
  if (out.numel() == 0) return;

  const bool pairs = bfloat16 && isa() >= Isa::avx512_bf16;
  std::vector<float> single(pairs ? 0 : 9 * channels * kHidden);
  std::vector<uint16_t> paired(pairs ? 9 * channels * kHidden : 0);
  for (int64_t n = 0; n < hidden; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < 9; ++k) {
        const int64_t from = (n * channels + c) * 9 + k;
        if (pairs) {
          paired[((k * (channels / 2) + c / 2) * kHidden + n) * 2 + c % 2] =
              static_cast<const uint16_t*>(weight1.const_data_ptr())[from];
        } else {
          single[(k * channels + c) * kHidden + n] =
              bfloat16 ? widen(static_cast<const uint16_t*>(weight1.const_data_ptr())[from])
                       : static_cast<const float*>(weight1.const_data_ptr())[from];
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
  const TailRows rows = choose(pairs);
  // Every range upsamples two rows beside its own.
  parallel_for(x.size(0) * call.out_height, 16, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> memory(tail_scratch(call) + 64);
    void* scratch = memory.data();
    size_t space = memory.size();
    std::align(64, space - 64, scratch, space);
    rows(call, begin, end, scratch);
    float* values = call.out + begin * call.out_width;
    const int64_t count = (end - begin) * call.out_width;
    if (sigmoid) {
      for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + std::exp(-values[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
    }
  });
}

}  // namespace
}  // namespace dafast::cpu

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("decoder_tail", TORCH_BOX(&dafast::cpu::decoder_tail));
}
