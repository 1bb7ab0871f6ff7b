// The affine-invariant loss without torch: its arguments, the arithmetic that the CPU and CUDA share,
// and its functions for CUDA.
#pragma once

#include <cstdint>

#include "dafast/numbers.h"

namespace dafast {

// Maps with contiguous pixels; the strides between maps are free, in elements.
struct LossMaps {
  const void* values[2];  // prediction, target
  Dtype dtypes[2];
  const uint8_t* mask;     // valid pixels, or nullptr: all
  const uint8_t* regions;  // first of two regions, or nullptr: one
  int64_t strides[4];      // between maps: of the values, of the mask, of the regions
  int64_t maps, pixels;

  DAFAST_HOST_DEVICE inline int region_count() const { return regions ? 2 : 1; }
};

// Coefficients of one region of a map: [0] [1] median and inverse scale of the prediction, [2] [3]
// of the target; factors in the gradient of a pixel: [4] of sign(p_hat - t_hat), [5] of p ==
// median, [6] of sign(p - median); [7] whether the scale of the prediction was clamped.
constexpr int kCoefficients = 8;

// Sums over the valid pixels of a region of a map; e = sign(p_hat - t_hat).
struct RegionSums {
  int64_t area;                  // pixels of the region, valid or not
  int64_t valid, below, ties;    // valid ones; of these, less than the prediction's median, equal
  double loss, signs, along;     // of |p_hat - t_hat|, of e, of e * p_hat
};

// Writes the factors [4] to [6] of a region with valid pixels, given [1] and [7]. Returns what the
// region adds to the loss.
DAFAST_HOST_DEVICE inline double write_factors(const RegionSums& sums, int64_t maps, int64_t pixels,
                                               float* c) {
  const double valid = static_cast<double>(sums.valid);
  const double share = static_cast<double>(sums.area) / static_cast<double>(pixels);
  const double weight = share / (valid * static_cast<double>(maps));
  const double by_sign = weight * c[1];
  const double by_scale = c[7] != 0.0f ? 0.0 : -by_sign * sums.along / valid;
  // Pixels above the median minus those below it: the sum of sign(p - median).
  const double beyond = static_cast<double>(sums.valid - sums.ties - 2 * sums.below);
  const double tied = by_sign * sums.signs + by_scale * beyond;
  c[4] = static_cast<float>(by_sign);
  c[5] = static_cast<float>(-tied / static_cast<double>(sums.ties));
  c[6] = static_cast<float>(by_scale);
  return weight * sums.loss;
}

// An int32 that orders like the float32; -0 counts as 0.
DAFAST_HOST_DEVICE inline int32_t key_of(float x) {
  const int32_t bits = static_cast<int32_t>(bits_of(x == 0.0f ? 0.0f : x));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The float32 of a key.
DAFAST_HOST_DEVICE inline float value_of(int32_t key) {
  return float_of(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7fffffff)));
}

namespace cuda {

// Results of the forward, on the device.
struct LossResults {
  float* loss;
  float* coefficients;  // (maps, regions, kCoefficients)
  int32_t* workspace;   // of affine_invariant_loss_workspace(maps) words, any values
};

// The blocks of a cluster, which keeps one map in its shared memory, and threads of a block.
struct Cluster {
  int blocks, threads;
};

int64_t affine_invariant_loss_workspace(int64_t maps);

// The smallest cluster that keeps a map of this size on the current device; 0 blocks if none does.
Cluster affine_invariant_loss_cluster(int64_t pixels, int regions);

// Both return a cudaError_t.
int affine_invariant_loss(const LossMaps& maps, float min_scale, const LossResults& results,
                          Cluster cluster, void* stream);
int affine_invariant_loss_backward(const LossMaps& maps, const float* grad,
                                   const float* coefficients, void* out, void* stream);

}  // namespace cuda
}  // namespace dafast
