// A radix select that a cluster of blocks runs together: it reads a map once and keeps it in shared
// memory. The blocks count the digits of their pixels in bins, and add up the bins of all blocks.
#pragma once

#include <cooperative_groups.h>

#include "dafast/losses.h"
#include "launch.h"

namespace dafast::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kMaxThreads = 1024, kMaxBlocks = 16;
constexpr int kBins = 2048, kGroup = 32, kGroups = kBins / kGroup;
constexpr int kQuad = 4;  // pixels that a thread reads together

// What the radix select has found of the median of a map's prediction or target in one region.
struct Median {
  uint32_t valid, rank, ties;  // rank: among the keys that share the known bits
  int32_t prefix;              // the known bits
  uint32_t group, left;        // of the current digit: the bins with the median, its rank in them
};

// The shared memory of a block, before its pixels. Segments: the regions of the prediction, then
// those of the target.
template <int kRegions>
struct alignas(16) Shared {
  static constexpr int segments = 2 * kRegions;
  uint32_t bins[segments][kBins];  // later the terms of sums
  uint32_t groups[segments][kGroups];
  Median medians[segments];
  float scales[segments];
  float deviations[kMaxBlocks][segments];  // sums of every block
  float sums[kMaxBlocks][3 * kRegions];
  uint32_t areas[kMaxBlocks];  // pixels in the first region, of every block
  uint32_t area;
  uint32_t is_last;
};

// A block's pixels: values, and 0 for an invalid pixel, else 1 + its region.
struct Kept {
  float* values[2];
  uint8_t* flags;
  int count;
};

inline int64_t shared_bytes(int regions, int per_block) {
  const size_t before = regions == 2 ? sizeof(Shared<2>) : sizeof(Shared<1>);
  return static_cast<int64_t>(before) + per_block * int64_t{2 * sizeof(float) + 1};
}

template <typename T>
struct alignas(kQuad * sizeof(T)) Quad {
  T values[kQuad];
};

// Up to four values from `at` on; all at once if they are aligned.
template <typename T>
__device__ inline void load_quad(const T* from, int count, bool wide, float* out) {
  Quad<T> quad = {};
  if (wide) {
    quad = *reinterpret_cast<const Quad<T>*>(from);
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k < count) quad.values[k] = from[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kQuad; ++k) out[k] = to_float(quad.values[k]);
}

__device__ inline void load_values(const LossMaps& maps, int which, int64_t at, int count,
                                   bool wide, float* out) {
  const void* from = maps.values[which];
  if (maps.dtypes[which] == Dtype::float32) {
    load_quad(static_cast<const float*>(from) + at, count, wide, out);
  } else if (maps.dtypes[which] == Dtype::bfloat16) {
    load_quad(static_cast<const bfloat16*>(from) + at, count, wide, out);
  } else {
    load_quad(static_cast<const float16*>(from) + at, count, wide, out);
  }
}

// The flags of up to four pixels, and how many of them are in the first region.
__device__ inline Quad<uint8_t> load_flags(const LossMaps& maps, int64_t map, int64_t pixel,
                                           int count, bool wide, uint32_t* area) {
  float mask[kQuad] = {1.0f, 1.0f, 1.0f, 1.0f}, first[kQuad] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (maps.mask) load_quad(maps.mask + map * maps.strides[2] + pixel, count, wide, mask);
  if (maps.regions) load_quad(maps.regions + map * maps.strides[3] + pixel, count, wide, first);
  Quad<uint8_t> flags;
#pragma unroll
  for (int k = 0; k < kQuad; ++k) {
    const bool valid = k < count && mask[k] != 0.0f;
    flags.values[k] = static_cast<uint8_t>(valid ? (first[k] != 0.0f ? 1 : 2) : 0);
    *area += k < count && first[k] != 0.0f;
  }
  return flags;
}

// Calls body(prediction, target, region) for the valid pixels that this thread has loaded.
template <typename Body>
__device__ inline void for_pixels(const Kept& kept, const Body& body) {
  for (int i = kQuad * threadIdx.x; i < kept.count; i += kQuad * blockDim.x) {
    const auto p = *reinterpret_cast<const Quad<float>*>(kept.values[0] + i);
    const auto t = *reinterpret_cast<const Quad<float>*>(kept.values[1] + i);
    const auto flags = *reinterpret_cast<const Quad<uint8_t>*>(kept.flags + i);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (flags.values[k] != 0) body(p.values[k], t.values[k], flags.values[k] - 1);
    }
  }
}

// Counts digit kPass of a key that starts with the known bits.
template <int kPass, int kRegions>
__device__ inline void count(Shared<kRegions>& shared, int segment, float x) {
  const int32_t key = key_of(x);
  int digit = (key >> 21) + kBins / 2;  // keys are signed
  if (kPass > 0) {
    if ((key >> (kPass == 1 ? 21 : 10)) != shared.medians[segment].prefix) return;
    digit = kPass == 1 ? (key >> 10) & 2047 : key & 1023;
  }
  atomicAdd(&shared.bins[segment][digit], 1u);
}

// Every block's bins become the sums over all blocks. Each block adds up a part, in place: nobody
// else reads or writes this part.
template <int kRegions, typename Group>
__device__ inline void merge(Shared<kRegions>& shared, const Group& cluster) {
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int part = Shared<kRegions>::segments * kBins / blocks;
  uint32_t* const bins = &shared.bins[0][0] + cluster.block_rank() * part;
  cluster.sync();
  for (int i = threadIdx.x; i < part; i += blockDim.x) {
    uint32_t sum = 0;
#pragma unroll 4
    for (int rank = 0; rank < blocks; ++rank) sum += *cluster.map_shared_rank(bins + i, rank);
#pragma unroll 4
    for (int rank = 0; rank < blocks; ++rank) *cluster.map_shared_rank(bins + i, rank) = sum;
  }
  cluster.sync();
}

// Finds digit kPass of every segment's median in the bins, and empties them.
template <int kPass, int kRegions>
__device__ inline void locate(Shared<kRegions>& shared) {
  constexpr int segments = Shared<kRegions>::segments;
  for (int g = threadIdx.x; g < segments * kGroups; g += blockDim.x) {
    const uint32_t* bins = &shared.bins[0][0] + g * kGroup;
    uint32_t sum = 0;
    for (int j = 0; j < kGroup; ++j) sum += bins[(j + g) % kGroup];  // other lanes, other banks
    (&shared.groups[0][0])[g] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < segments * kGroups; i += blockDim.x) {
    const uint32_t* groups = shared.groups[i / kGroups];
    Median& median = shared.medians[i / kGroups];
    const int g = i % kGroups;
    uint32_t before = 0, all = 0;
#pragma unroll 8
    for (int j = 0; j < kGroups; ++j) {
      before += j < g ? groups[j] : 0;
      all += groups[j];
    }
    const uint32_t rank = kPass == 0 ? (all - (all > 0)) / 2 : median.rank;
    if (kPass == 0 && g == 0) median.valid = all;
    if (rank >= before && rank - before < groups[g]) {
      median.group = g;
      median.left = rank - before;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < segments * kGroup; i += blockDim.x) {
    Median& median = shared.medians[i / kGroup];
    const uint32_t* bins = shared.bins[i / kGroup] + median.group * kGroup;
    const int bin = i % kGroup;
    uint32_t before = 0;
#pragma unroll 8
    for (int j = 0; j < kGroup; ++j) before += j < bin ? bins[j] : 0;
    if (median.left >= before && median.left - before < bins[bin]) {
      const int32_t digit = static_cast<int32_t>(median.group) * kGroup + bin;
      median.prefix = kPass == 0 ? digit - kBins / 2
                                 : median.prefix * (kPass == 1 ? 2048 : 1024) + digit;
      median.rank = median.left - before;
      median.ties = bins[bin];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < segments * kBins; i += blockDim.x) (&shared.bins[0][0])[i] = 0;
  __syncthreads();
}

}  // namespace
}  // namespace dafast::cuda
