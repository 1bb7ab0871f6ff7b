// Joint bilateral upsampling on the CPU; the arithmetic is that of dafast/ops/guided_upsample.py.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../registry.h"
#include "rows.h"
#include "tensors.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kReach = 2;            // as REACH
constexpr int64_t kTaps = 2 * kReach + 1;
constexpr double kSpread = 0.7;          // as SPREAD
constexpr float kFloor = 1e-6f;          // as FLOOR

// For each pixel of the result along one axis, the pixels of the map and their weights.
struct Taps {
  std::vector<int64_t> index;
  std::vector<float> weight;

  Taps(int64_t source, int64_t target, bool align_corners)
      : index(static_cast<size_t>(target * kTaps)), weight(static_cast<size_t>(target * kTaps)) {
    const double step = align_corners
                            ? static_cast<double>(source - 1) / std::max<int64_t>(1, target - 1)
                            : static_cast<double>(source) / static_cast<double>(target);
    for (int64_t i = 0; i < target; ++i) {
      const double place = align_corners ? i * step : (i + 0.5) * step - 0.5;
      const double nearest = std::nearbyint(place);
      for (int64_t k = 0; k < kTaps; ++k) {
        const double offset = nearest + static_cast<double>(k - kReach);
        index[i * kTaps + k] =
            std::clamp<int64_t>(static_cast<int64_t>(offset), 0, source - 1);
        weight[i * kTaps + k] = static_cast<float>(
            std::exp(-(offset - place) * (offset - place) / (2 * kSpread * kSpread)));
      }
    }
  }
};

template <typename T>
void upsample(const Tensor& x, const Tensor& guide, const float* small, float* out, float sigma,
              bool align_corners) {
  const int64_t batch = x.size(0), h = x.size(2), w = x.size(3);
  const int64_t channels = guide.size(1), height = guide.size(2), width = guide.size(3);
  const Taps rows(h, height, align_corners), columns(w, width, align_corners);
  const float* maps = static_cast<const float*>(x.const_data_ptr());
  const T* guides = static_cast<const T*>(guide.const_data_ptr());
  const int64_t stride_b = guide.stride(0), stride_c = guide.stride(1);
  const int64_t stride_y = guide.stride(2), stride_x = guide.stride(3);
  const float unit = sizeof(T) == 1 ? 1.0f / 255.0f : 1.0f;
  const float sharpness = -1.0f / (2.0f * sigma * sigma);
  parallel_for(batch * height, grain_of(64 * width), [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t b = line / height, y = line % height;
      const float* map = maps + b * h * w;
      const float* colours = small + b * channels * h * w;
      for (int64_t column = 0; column < width; ++column) {
        const T* pixel = guides + b * stride_b + y * stride_y + column * stride_x;
        float total = 0.0f, sum = 0.0f;
        for (int64_t i = 0; i < kTaps; ++i) {
          const int64_t row = rows.index[y * kTaps + i] * w;
          for (int64_t j = 0; j < kTaps; ++j) {
            const int64_t at = row + columns.index[column * kTaps + j];
            float distance = 0.0f;
            for (int64_t c = 0; c < channels; ++c) {
              const float colour = static_cast<float>(pixel[c * stride_c]) * unit;
              const float difference = colour - colours[c * h * w + at];
              distance += difference * difference;
            }
            const float weight = (std::exp(distance * sharpness) + kFloor) *
                                 rows.weight[y * kTaps + i] * columns.weight[column * kTaps + j];
            total += weight;
            sum += weight * map[at];
          }
        }
        out[line * width + column] = sum / total;
      }
    }
  });
}

// x (B, 1, h, w) and small (B, C, h, w) float32, contiguous; guide (B, C, H, W) float32 or uint8,
// any strides; out (B, 1, H, W) float32, contiguous.
void guided_upsample(const Tensor& x, const Tensor& guide, const Tensor& small, Tensor out,
                     double sigma, bool align_corners) {
  STD_TORCH_CHECK(x.dim() == 4 && guide.dim() == 4 && guide.is_cpu() &&
                      guide.size(0) == x.size(0) && x.size(1) == 1 && x.size(2) > 0 &&
                      x.size(3) > 0,
                  "guided_upsample: expected CPU tensors (B, 1, h, w) and (B, C, H, W)");
  const int64_t pixels = guide.size(2) * guide.size(3);
  float_data_of(x, x.size(0) * x.size(2) * x.size(3), "guided_upsample");
  const float* colours = float_data_of(
      small, guide.size(0) * guide.size(1) * x.size(2) * x.size(3), "guided_upsample");
  float* result = float_data_of(out, x.size(0) * pixels, "guided_upsample");
  const float spread = static_cast<float>(sigma);
  if (guide.scalar_type() == ScalarType::Byte) {
    upsample<uint8_t>(x, guide, colours, result, spread, align_corners);
  } else {
    STD_TORCH_CHECK(guide.scalar_type() == ScalarType::Float,
                    "guided_upsample: expected a guide in float32 or uint8");
    upsample<float>(x, guide, colours, result, spread, align_corners);
  }
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(guided_upsample, m) {
  m.def(
      "guided_upsample(Tensor x, Tensor guide, Tensor small, Tensor(a!) out, float sigma,"
      " bool align_corners) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("guided_upsample", TORCH_BOX(&dafast::cpu::guided_upsample));
}
