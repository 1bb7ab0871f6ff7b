// Affine-invariant loss on the CPU: masked medians by a radix select without sorting or copying,
// deviations, L1, and a backward that reads each pixel once.
//
// The result has the same bits for any number of threads: counts are integers, and floats are
// summed in parts whose bounds depend only on the sizes.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../loss_maps.h"
#include "../registry.h"
#include "tensors.h"

namespace dafast::cpu {

// The median of one map's values in one region, and the counts that the gradient needs.
struct Segment {
  int64_t valid;   // pixels
  int64_t below;   // of these, less than the median
  int64_t ties;    // of these, equal to it
  float median;
  double deviation;  // sum of |x - median|
};

// Sums over the pixels of a part of a map, by region; e = sign(p_hat - t_hat).
struct Sums {
  double loss[2];   // |p_hat - t_hat|
  double signs[2];  // e
  double along[2];  // e * p_hat
  int64_t area;     // pixels in the first region, valid or not
};

// Histograms of 11 bits, of both regions and of all other pixels; four counters to a bin.
constexpr int kBins = 2048, kCopies = 4;
constexpr int kCounters = 3 * kBins * kCopies;

}  // namespace dafast::cpu

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#define DAFAST_KERNELS "affine_invariant_loss_kernels.h"
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "affine_invariant_loss";
constexpr int64_t kPart = 32768;  // pixels of a map that one thread sums or writes at a time

// Calls body(map, begin, end) for the parts of all maps.
template <typename Body>
void for_parts(const LossMaps& maps, const Body& body) {
  const int64_t parts = (maps.pixels + kPart - 1) / kPart;
  torch::stable::parallel_for(0, maps.maps * parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % parts * kPart;
      body(i, i / parts, begin, std::min(maps.pixels, begin + kPart));
    }
  });
}

float scale_of(const Segment& segment) {
  return static_cast<float>(segment.deviation / static_cast<double>(segment.valid));
}

void forward(const Tensor& prediction, const Tensor& target, std::optional<Tensor> mask,
             std::optional<Tensor> regions, double min_scale, Tensor loss, Tensor coefficients) {
  const LossMaps maps = loss_maps_of(prediction, target, mask, regions);
  const int count = maps.region_count();
  float* const out = float_data_of(coefficients, maps.maps * count * kCoefficients,
                                   kOp);
  float* const sum = float_data_of(loss, 1, kOp);

  // Of a map: the regions of the prediction, then those of the target.
  std::vector<Segment> segments(static_cast<size_t>(maps.maps * 2 * count));
  const auto find_medians = DAFAST_FOR_ISA(find_medians);
  torch::stable::parallel_for(0, maps.maps * 2, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> counters(kCounters);
    for (int64_t i = begin; i < end; ++i) {
      find_medians(maps, static_cast<int>(i % 2), i / 2, counters.data(), &segments[i * count]);
    }
  });

  const float least = static_cast<float>(min_scale);
  for (int64_t map = 0; map < maps.maps; ++map) {
    for (int r = 0; r < count; ++r) {
      float* c = out + (map * count + r) * kCoefficients;
      std::fill(c, c + kCoefficients, 0.0f);
      for (int which = 0; which < 2; ++which) {
        const Segment& segment = segments[(map * 2 + which) * count + r];
        if (segment.valid == 0) continue;
        const float scale = scale_of(segment);
        c[2 * which] = segment.median;
        c[2 * which + 1] = 1.0f / (scale < least ? least : scale);  // keeps NaN
        if (which == 0) c[7] = scale < least;
      }
    }
  }

  const int64_t parts = (maps.pixels + kPart - 1) / kPart;
  std::vector<Sums> sums(static_cast<size_t>(maps.maps * parts));
  const auto sum_differences = DAFAST_FOR_ISA(sum_differences);
  for_parts(maps, [&](int64_t part, int64_t map, int64_t begin, int64_t end) {
    sum_differences(maps, map, begin, end, out + map * count * kCoefficients, &sums[part]);
  });

  double total = 0.0;
  for (int64_t map = 0; map < maps.maps; ++map) {
    Sums all{};
    for (int64_t part = map * parts; part < (map + 1) * parts; ++part) {
      for (int r = 0; r < count; ++r) {
        all.loss[r] += sums[part].loss[r];
        all.signs[r] += sums[part].signs[r];
        all.along[r] += sums[part].along[r];
      }
      all.area += sums[part].area;
    }
    for (int r = 0; r < count; ++r) {
      const Segment& segment = segments[map * 2 * count + r];
      if (segment.valid == 0) continue;
      const int64_t area = count == 1 ? maps.pixels : r == 0 ? all.area : maps.pixels - all.area;
      total += write_factors({area, segment.valid, segment.below, segment.ties, all.loss[r],
                              all.signs[r], all.along[r]},
                             maps.maps, maps.pixels, out + (map * count + r) * kCoefficients);
    }
  }
  *sum = static_cast<float>(total);
}

void backward(const Tensor& grad, const Tensor& prediction, const Tensor& target,
              std::optional<Tensor> mask, std::optional<Tensor> regions,
              const Tensor& coefficients, Tensor out) {
  const LossMaps maps = loss_maps_of(prediction, target, mask, regions);
  const int64_t stride = maps.region_count() * kCoefficients;
  const float* const c = float_data_of(coefficients, maps.maps * stride, kOp);
  const float factor = *float_data_of(grad, 1, kOp);
  void* const to = out_data_of(out, prediction, kOp);
  const auto write_gradient = DAFAST_FOR_ISA(write_gradient);
  for_parts(maps, [&](int64_t, int64_t map, int64_t begin, int64_t end) {
    write_gradient(maps, map, begin, end, c + map * stride, factor, to);
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(affine_invariant_loss, m) {
  m.def(
      "affine_invariant_loss(Tensor prediction, Tensor target, Tensor? mask, Tensor? regions,"
      " float min_scale, Tensor(a!) loss, Tensor(b!) coefficients) -> ()");
  m.def(
      "affine_invariant_loss_backward(Tensor grad, Tensor prediction, Tensor target, Tensor? mask,"
      " Tensor? regions, Tensor coefficients, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("affine_invariant_loss", TORCH_BOX(&dafast::cpu::forward));
  m.impl("affine_invariant_loss_backward", TORCH_BOX(&dafast::cpu::backward));
}
