// Forward warp with a depth test and hole filling on the CPU; the arithmetic is that of
// dafast/ops/forward_warp.py.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../registry.h"
#include "rows.h"
#include "tensors.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kFractions = 256;        // as FRACTIONS
constexpr float kFarthest = 1 << 20;       // as FARTHEST
constexpr float kEmpty = -std::numeric_limits<float>::infinity();
constexpr int64_t kBand = 16;              // rows of the target that a thread computes at a time

struct Warp {
  const float* image;  // (C, H, W)
  const float* flow;   // (2, H, W)
  const float* order;  // (H, W)
  int64_t channels, height, width;
  float tolerance;
  float* out;      // (C, H, W)
  float* nearest;  // (H, W)
};

// Where a pixel lands: the upper left of four pixels, and the fractions of the others.
struct Target {
  int64_t x, y, right, down;
};

bool target_of(const Warp& warp, int64_t row, int64_t column, Target& target) {
  const int64_t at = row * warp.width + column;
  const float x = static_cast<float>(column) + warp.flow[at];
  const float y = static_cast<float>(row) + warp.flow[warp.height * warp.width + at];
  if (!(std::fabs(x) < kFarthest) || !(std::fabs(y) < kFarthest)) return false;  // NaN too
  if (!std::isfinite(warp.order[at])) return false;
  const int64_t fine_x = static_cast<int64_t>(std::nearbyint(x * kFractions));
  const int64_t fine_y = static_cast<int64_t>(std::nearbyint(y * kFractions));
  target = {fine_x >> 8, fine_y >> 8, fine_x & 255, fine_y & 255};
  return true;
}

// Calls body(pixel of the band, weight) for each pixel of rows [first, last) that a target covers.
template <typename Body>
void for_corners(const Target& target, int64_t width, int64_t first, int64_t last,
                 const Body& body) {
  for (int64_t dy = 0; dy < 2; ++dy) {
    const int64_t y = target.y + dy;
    const int64_t weight_y = dy ? target.down : kFractions - target.down;
    if (y < first || y >= last || weight_y == 0) continue;
    for (int64_t dx = 0; dx < 2; ++dx) {
      const int64_t x = target.x + dx;
      const int64_t weight = weight_y * (dx ? target.right : kFractions - target.right);
      if (x < 0 || x >= width || weight == 0) continue;
      body((y - first) * width + x, weight);
    }
  }
}

// Rows [first, last) of the target, from the rows of the source that reach them. The sums have the
// order of the source, for any number of threads.
void splat_band(const Warp& warp, const std::vector<int64_t>& lowest,
                const std::vector<int64_t>& highest, int64_t first, int64_t last) {
  const int64_t width = warp.width, size = warp.height * width, count = (last - first) * width;
  float* nearest = warp.nearest + first * width;
  std::fill(nearest, nearest + count, kEmpty);
  std::vector<float> total(static_cast<size_t>(count), 0.0f);
  for (int64_t c = 0; c < warp.channels; ++c) {
    std::fill_n(warp.out + c * size + first * width, count, 0.0f);
  }
  Target target;
  for (const bool colours : {false, true}) {
    for (int64_t row = 0; row < warp.height; ++row) {
      if (highest[row] + 1 < first || lowest[row] >= last) continue;
      for (int64_t column = 0; column < width; ++column) {
        if (!target_of(warp, row, column, target)) continue;
        const int64_t source = row * width + column;
        const float order = warp.order[source];
        for_corners(target, width, first, last, [&](int64_t at, int64_t weight) {
          if (!colours) {
            nearest[at] = std::max(nearest[at], order);
          } else if (order >= nearest[at] - warp.tolerance) {
            total[at] += static_cast<float>(weight);
            for (int64_t c = 0; c < warp.channels; ++c) {
              warp.out[c * size + first * width + at] +=
                  warp.image[c * size + source] * static_cast<float>(weight);
            }
          }
        });
      }
    }
  }
  for (int64_t c = 0; c < warp.channels; ++c) {
    float* out = warp.out + c * size + first * width;
    for (int64_t i = 0; i < count; ++i) out[i] = total[i] > 0.0f ? out[i] / total[i] : out[i];
  }
}

void splat(const Warp& warp) {
  std::vector<int64_t> lowest(warp.height), highest(warp.height);
  parallel_for(warp.height, grain_of(warp.width), [&](int64_t begin, int64_t end) {
    Target target;
    for (int64_t row = begin; row < end; ++row) {
      lowest[row] = std::numeric_limits<int64_t>::max();
      highest[row] = std::numeric_limits<int64_t>::min() / 2;
      for (int64_t column = 0; column < warp.width; ++column) {
        if (!target_of(warp, row, column, target)) continue;
        lowest[row] = std::min(lowest[row], target.y);
        highest[row] = std::max(highest[row], target.y);
      }
    }
  });
  parallel_for((warp.height + kBand - 1) / kBand, 1, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      splat_band(warp, lowest, highest, band * kBand,
                 std::min(warp.height, (band + 1) * kBand));
    }
  });
}

// One side of a hole: the place of the nearest pixel, or none.
struct Side {
  int64_t at;        // in the map; -1 for none
  int64_t distance;
};

// The side with the smaller order; the nearer one of equals; then the one before.
Side background(const Side& before, const Side& after, const float* order) {
  if (before.at < 0) return after;
  if (after.at < 0) return before;
  const float first = order[before.at], second = order[after.at];
  if (first != second) return first < second ? before : after;
  return before.distance <= after.distance ? before : after;
}

// Fills the holes that have a pixel in their row or column; false if there is no hole.
bool fill_once(const Warp& warp) {
  const int64_t height = warp.height, width = warp.width, size = height * width;
  if (std::find(warp.nearest, warp.nearest + size, kEmpty) == warp.nearest + size) return false;
  // Of each pixel, the nearest row with a pixel above and below it.
  std::vector<int32_t> above(static_cast<size_t>(size)), below(static_cast<size_t>(size));
  parallel_for(width, std::max<int64_t>(64, grain_of(height)), [&](int64_t begin, int64_t end) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = begin; x < end; ++x) {
        const int64_t at = y * width + x;
        const int32_t known = y == 0 ? -1 : above[at - width];
        above[at] = warp.nearest[at] == kEmpty ? known : static_cast<int32_t>(y);
      }
    }
    for (int64_t y = height; y-- > 0;) {
      for (int64_t x = begin; x < end; ++x) {
        const int64_t at = y * width + x;
        const int32_t known = y == height - 1 ? -1 : below[at + width];
        below[at] = warp.nearest[at] == kEmpty ? known : static_cast<int32_t>(y);
      }
    }
  });
  // Results go to the holes only, which no other hole reads: `order` keeps what it was.
  const std::vector<float> order(warp.nearest, warp.nearest + size);
  parallel_for(height, grain_of(width), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> right(static_cast<size_t>(width));
    for (int64_t y = begin; y < end; ++y) {
      const int64_t row = y * width;
      int64_t known = -1;
      for (int64_t x = width; x-- > 0;) {
        if (order[row + x] != kEmpty) known = x;
        right[x] = known;
      }
      known = -1;
      for (int64_t x = 0; x < width; ++x) {
        const int64_t at = row + x;
        if (order[at] != kEmpty) {
          known = x;
          continue;
        }
        const auto across = [&](int64_t to) {
          return to < 0 ? Side{-1, 0} : Side{row + to, std::abs(to - x)};
        };
        const auto along = [&](int64_t to) {
          return to < 0 ? Side{-1, 0} : Side{to * width + x, std::abs(to - y)};
        };
        float total = 0.0f, near = 0.0f, weights[2] = {0.0f, 0.0f};
        const Side sides[2] = {background(across(known), across(right[x]), order.data()),
                               background(along(above[at]), along(below[at]), order.data())};
        for (int i = 0; i < 2; ++i) {
          if (sides[i].at < 0) continue;
          const float distance = static_cast<float>(sides[i].distance);
          weights[i] = 1.0f / (distance * distance);
          total += weights[i];
          near += weights[i] * order[sides[i].at];
        }
        if (total == 0.0f) continue;
        warp.nearest[at] = near / total;
        for (int64_t c = 0; c < warp.channels; ++c) {
          float colour = 0.0f;
          for (int i = 0; i < 2; ++i) {
            if (sides[i].at >= 0) colour += weights[i] * warp.out[c * size + sides[i].at];
          }
          warp.out[c * size + at] = colour / total;
        }
      }
    }
  });
  return true;
}

// image and out (B, C, H, W), flow (B, 2, H, W), order (B, 1, H, W), float32, contiguous; holes
// (B, 1, H, W), bool.
void forward_warp(const Tensor& image, const Tensor& flow, const Tensor& order, Tensor out,
                  Tensor holes, double tolerance) {
  STD_TORCH_CHECK(image.dim() == 4, "forward_warp: expected an image (B, C, H, W)");
  const int64_t batch = image.size(0), channels = image.size(1), height = image.size(2);
  const int64_t width = image.size(3), size = height * width;
  STD_TORCH_CHECK(holes.is_cpu() && holes.is_contiguous() && holes.numel() == batch * size &&
                      holes.scalar_type() == ScalarType::Bool,
                  "forward_warp: expected contiguous holes in bool");
  STD_TORCH_CHECK(height < std::numeric_limits<int32_t>::max(), "forward_warp: too many rows");
  const float* images = float_data_of(image, batch * channels * size, "forward_warp");
  const float* flows = float_data_of(flow, batch * 2 * size, "forward_warp");
  const float* orders = float_data_of(order, batch * size, "forward_warp");
  float* outs = float_data_of(out, batch * channels * size, "forward_warp");
  bool* empty = static_cast<bool*>(holes.mutable_data_ptr());
  std::vector<float> nearest(static_cast<size_t>(size));
  for (int64_t b = 0; b < batch; ++b) {
    const Warp warp{images + b * channels * size, flows + b * 2 * size, orders + b * size,
                    channels, height, width, static_cast<float>(tolerance),
                    outs + b * channels * size, nearest.data()};
    splat(warp);
    for (int64_t i = 0; i < size; ++i) empty[b * size + i] = nearest[i] == kEmpty;
    // After the first, every row that has a pixel is complete.
    if (fill_once(warp)) fill_once(warp);
  }
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(forward_warp, m) {
  m.def(
      "forward_warp(Tensor image, Tensor flow, Tensor order, Tensor(a!) out, Tensor(b!) holes,"
      " float tolerance) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("forward_warp", TORCH_BOX(&dafast::cpu::forward_warp));
}
