// The affine-invariant loss for Hopper and later. A cluster of blocks reads a map once, keeps it in
// its shared memory, and finds medians, scales, loss and the factors of the backward there: one
// launch. The medians come from a radix select with digits of 11, 11 and 10 bits, so equal values,
// however many, only make a count larger. Atomics are only on integers, and floats are summed in an
// order that depends on the sizes only: every run gives the same bits.
#include "cluster_median.h"

namespace dafast::cuda {
namespace {

// The sums of `terms` over the threads of a block; thread q gets sum q. `scratch` has room for a
// term of every thread.
template <int kTerms, typename T>
__device__ inline T sum_over_block(T* scratch, const T* terms) {
#pragma unroll
  for (int q = 0; q < kTerms; ++q) scratch[q * blockDim.x + threadIdx.x] = terms[q];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int q = 0; q < kTerms; ++q) {
        scratch[q * blockDim.x + threadIdx.x] += scratch[q * blockDim.x + threadIdx.x + half];
      }
    }
  }
  __syncthreads();
  const T sum = threadIdx.x < kTerms ? scratch[threadIdx.x * blockDim.x] : T{};
  __syncthreads();
  return sum;
}

__device__ inline float sign_of(float x) { return static_cast<float>((x > 0.0f) - (x < 0.0f)); }

// (x - median) * inverse without contraction: equal maps have to normalise to equal values, and the
// backward to the signs that the forward summed.
__device__ inline float normalised(float x, float median, float inverse) {
  return __fmul_rn(__fsub_rn(x, median), inverse);
}

// Reads this block's pixels of a map, keeps them, and counts their first digits.
template <int kRegions>
__device__ inline void load(const LossMaps& maps, int64_t map, int64_t begin, bool wide,
                            const Kept& kept, Shared<kRegions>& shared) {
  uint32_t area = 0;
  for (int i = kQuad * threadIdx.x; i < kept.count; i += kQuad * blockDim.x) {
    const int count_here = min(kQuad, kept.count - i);
    Quad<float> values[2];
    for (int which = 0; which < 2; ++which) {
      load_values(maps, which, map * maps.strides[which] + begin + i, count_here, wide,
                  values[which].values);
    }
    const Quad<uint8_t> flags = load_flags(maps, map, begin + i, count_here, wide, &area);
    *reinterpret_cast<Quad<uint8_t>*>(kept.flags + i) = flags;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      *reinterpret_cast<Quad<float>*>(kept.values[which] + i) = values[which];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        const int segment = which * kRegions + flags.values[k] - 1;
        if (flags.values[k] != 0) count<0>(shared, segment, values[which].values[k]);
      }
    }
  }
  if (kRegions == 2) atomicAdd(&shared.area, area);
}

// Writes the coefficients of a map; returns its part of the loss.
template <int kRegions>
__device__ double finish(const LossMaps& maps, const Shared<kRegions>& shared, float min_scale,
                         int blocks, float* coefficients) {
  int64_t first = 0;
  for (int rank = 0; rank < blocks; ++rank) first += shared.areas[rank];
  double loss = 0.0;
  for (int r = 0; r < kRegions; ++r) {
    float* c = coefficients + r * kCoefficients;
    const Median& p = shared.medians[r];
    for (int i = 0; i < kCoefficients; ++i) c[i] = 0.0f;
    if (p.valid == 0) continue;
    const int64_t below = (p.valid - 1) / 2 - p.rank;
    const int64_t area = kRegions == 1 ? maps.pixels : r == 0 ? first : maps.pixels - first;
    RegionSums sums = {area, p.valid, below, p.ties, 0.0, 0.0, 0.0};
    for (int rank = 0; rank < blocks; ++rank) {
      sums.loss += shared.sums[rank][3 * r];
      sums.signs += shared.sums[rank][3 * r + 1];
      sums.along += shared.sums[rank][3 * r + 2];
    }
    for (int which = 0; which < 2; ++which) {
      const float scale = shared.scales[which * kRegions + r];
      c[2 * which] = value_of(shared.medians[which * kRegions + r].prefix);
      c[2 * which + 1] = 1.0f / (scale < min_scale ? min_scale : scale);  // keeps NaN
    }
    c[7] = shared.scales[r] < min_scale;
    loss += write_factors(sums, maps.maps, maps.pixels, c);
  }
  return loss;
}

// The mean |x - median| of every segment, from all blocks in the order of their ranks.
template <int kRegions, typename Group>
__device__ inline void find_scales(Shared<kRegions>& shared, const Group& cluster,
                                   const Kept& kept) {
  constexpr int segments = Shared<kRegions>::segments;
  float medians[segments], terms[segments] = {};
#pragma unroll
  for (int s = 0; s < segments; ++s) medians[s] = value_of(shared.medians[s].prefix);
  for_pixels(kept, [&](float p, float t, int region) {
#pragma unroll
    for (int r = 0; r < kRegions; ++r) {
      if (region != r) continue;
      terms[r] += fabsf(p - medians[r]);
      terms[kRegions + r] += fabsf(t - medians[kRegions + r]);
    }
  });
  const float sum = sum_over_block<segments>(reinterpret_cast<float*>(shared.bins), terms);
  if (threadIdx.x < segments) {
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
      *cluster.map_shared_rank(&shared.deviations[cluster.block_rank()][threadIdx.x], rank) = sum;
    }
  }
  cluster.sync();
  if (threadIdx.x < segments) {
    float all = 0.0f;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
      all += shared.deviations[rank][threadIdx.x];
    }
    shared.scales[threadIdx.x] = all / static_cast<float>(shared.medians[threadIdx.x].valid);
  }
  __syncthreads();
}

// Sums of |p_hat - t_hat|, of its sign e and of e * p_hat over every region, for the first block.
template <int kRegions, typename Group>
__device__ inline void sum_differences(Shared<kRegions>& shared, const Group& cluster,
                                       const Kept& kept, float min_scale) {
  constexpr int segments = Shared<kRegions>::segments;
  float medians[segments], inverses[segments], terms[3 * kRegions] = {};
#pragma unroll
  for (int s = 0; s < segments; ++s) {
    const float scale = shared.scales[s];
    medians[s] = value_of(shared.medians[s].prefix);
    inverses[s] = 1.0f / (scale < min_scale ? min_scale : scale);
  }
  for_pixels(kept, [&](float p, float t, int region) {
#pragma unroll
    for (int r = 0; r < kRegions; ++r) {
      if (region != r) continue;
      const float p_hat = normalised(p, medians[r], inverses[r]);
      const float t_hat = normalised(t, medians[kRegions + r], inverses[kRegions + r]);
      const float ahead = p_hat - t_hat, e = sign_of(ahead);
      terms[3 * r] += fabsf(ahead);
      terms[3 * r + 1] += e;
      terms[3 * r + 2] += e * p_hat;
    }
  });
  const float sum = sum_over_block<3 * kRegions>(reinterpret_cast<float*>(shared.bins), terms);
  const unsigned rank = cluster.block_rank();
  if (threadIdx.x < 3 * kRegions) {
    *cluster.map_shared_rank(&shared.sums[rank][threadIdx.x], 0) = sum;
  }
  if (threadIdx.x == 0) *cluster.map_shared_rank(&shared.areas[rank], 0) = shared.area;
  cluster.sync();
}

// The last map to finish adds up the losses of all maps. `losses` and `finished` are in the
// workspace; `finished` starts at zero.
template <int kRegions>
__device__ inline void add_losses(const LossMaps& maps, Shared<kRegions>& shared, double* losses,
                                  unsigned* finished, float* loss) {
  if (threadIdx.x == 0) {
    __threadfence();
    shared.is_last = atomicAdd(finished, 1u) == static_cast<unsigned>(maps.maps - 1);
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();
  double term = 0.0;
  for (int64_t i = threadIdx.x; i < maps.maps; i += blockDim.x) term += __ldcg(losses + i);
  const double sum = sum_over_block<1>(reinterpret_cast<double*>(shared.bins), &term);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

template <int kRegions>
__global__ void __launch_bounds__(kMaxThreads, 1)
    affine_invariant_loss_kernel(LossMaps maps, float min_scale, LossResults results,
                                 int per_block, bool wide) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older GPUs have no clusters
  const auto cluster = cg::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int64_t map = blockIdx.x / blocks, begin = static_cast<int64_t>(rank) * per_block;
  const int64_t left = maps.pixels - begin;

  unsigned char* const memory = dynamic_shared();
  auto& shared = *reinterpret_cast<Shared<kRegions>*>(memory);
  float* const values = reinterpret_cast<float*>(memory + sizeof shared);
  const Kept kept = {{values, values + per_block},
                     reinterpret_cast<uint8_t*>(values + 2 * per_block),
                     static_cast<int>(left < 0 ? 0 : left < per_block ? left : per_block)};

  for (int i = threadIdx.x; i < Shared<kRegions>::segments * kBins; i += blockDim.x) {
    (&shared.bins[0][0])[i] = 0;
  }
  if (threadIdx.x < Shared<kRegions>::segments) shared.medians[threadIdx.x] = {};
  if (threadIdx.x == 0) shared.area = 0;
  __syncthreads();

  load(maps, map, begin, wide, kept, shared);
  merge(shared, cluster);
  locate<0>(shared);
  for_pixels(kept, [&](float p, float t, int region) {
    count<1>(shared, region, p);
    count<1>(shared, kRegions + region, t);
  });
  merge(shared, cluster);
  locate<1>(shared);
  for_pixels(kept, [&](float p, float t, int region) {
    count<2>(shared, region, p);
    count<2>(shared, kRegions + region, t);
  });
  merge(shared, cluster);
  locate<2>(shared);
  find_scales(shared, cluster, kept);
  sum_differences(shared, cluster, kept, min_scale);

  if (rank != 0) return;
  double* const losses = reinterpret_cast<double*>(results.workspace + 2);
  if (threadIdx.x == 0) {
    losses[map] = finish(maps, shared, min_scale, blocks,
                         results.coefficients + map * kRegions * kCoefficients);
  }
  add_losses(maps, shared, losses, reinterpret_cast<unsigned*>(results.workspace), results.loss);
#endif
}

template <typename T, int kRegions>
__global__ void __launch_bounds__(256)
    affine_invariant_loss_backward_kernel(LossMaps maps, const float* grad,
                                          const float* coefficients, T* out, bool wide) {
  const int64_t pixel = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kQuad;
  if (pixel >= maps.pixels) return;
  const int64_t left = maps.pixels - pixel;
  const int count_here = static_cast<int>(left < kQuad ? left : kQuad);
  const float factor = *grad;
  for (int64_t map = blockIdx.y; map < maps.maps; map += gridDim.y) {
    float p[kQuad], t[kQuad];
    uint32_t area = 0;
    const T* from = static_cast<const T*>(maps.values[0]);
    load_quad(from + map * maps.strides[0] + pixel, count_here, wide, p);
    load_values(maps, 1, map * maps.strides[1] + pixel, count_here, wide, t);
    const Quad<uint8_t> flags = load_flags(maps, map, pixel, count_here, wide, &area);
    Quad<T> result;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const int region = kRegions == 2 ? flags.values[k] == 2 : 0;
      const float* c = coefficients + (map * kRegions + region) * kCoefficients;
      const float above = p[k] - c[0];
      const float e = sign_of(normalised(p[k], c[0], c[1]) - normalised(t[k], c[2], c[3]));
      const float tied = above == 0.0f ? c[5] : 0.0f;
      const float value = e * c[4] + tied + sign_of(above) * c[6];
      result.values[k] = from_float<T>(flags.values[k] != 0 ? value * factor : 0.0f);
    }
    T* to = out + map * maps.pixels + pixel;
    if (wide) {
      *reinterpret_cast<Quad<T>*>(to) = result;
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k < count_here) to[k] = result.values[k];
      }
    }
  }
}

// Whether every four pixels of every map are aligned.
bool is_wide(const LossMaps& maps) {
  const auto fits = [&](const void* data, int64_t size, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % (kQuad * size) == 0 &&
           (maps.maps == 1 || stride % kQuad == 0);
  };
  const auto size = [&](int which) { return maps.dtypes[which] == Dtype::float32 ? 4 : 2; };
  return maps.pixels % kQuad == 0 && fits(maps.values[0], size(0), maps.strides[0]) &&
         fits(maps.values[1], size(1), maps.strides[1]) &&
         (!maps.mask || fits(maps.mask, 1, maps.strides[2])) &&
         (!maps.regions || fits(maps.regions, 1, maps.strides[3]));
}

int per_block_of(int64_t pixels, int blocks) {
  const int64_t quads = (pixels + kQuad - 1) / kQuad;
  return static_cast<int>((quads + blocks - 1) / blocks) * kQuad;
}

// A launch as clusters of one map each. `attribute` has to outlive the result.
cudaLaunchConfig_t config_of(int64_t maps, int64_t pixels, int regions, Cluster cluster,
                             void* stream, cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = cluster.blocks;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(maps * cluster.blocks));
  config.blockDim = dim3(cluster.threads);
  config.dynamicSmemBytes = shared_bytes(regions, per_block_of(pixels, cluster.blocks));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

using Kernel = void (*)(LossMaps, float, LossResults, int, bool);

Kernel kernel_of(int regions) {
  return regions == 2 ? affine_invariant_loss_kernel<2> : affine_invariant_loss_kernel<1>;
}

template <typename T>
int run_backward(const LossMaps& maps, const float* grad, const float* coefficients, void* out,
                 void* stream) {
  const int64_t threads = (maps.pixels + kQuad - 1) / kQuad;
  const dim3 grid(static_cast<unsigned>((threads + 255) / 256),
                  static_cast<unsigned>(std::min<int64_t>(maps.maps, 65535)));
  const auto kernel = maps.regions ? affine_invariant_loss_backward_kernel<T, 2>
                                   : affine_invariant_loss_backward_kernel<T, 1>;
  const bool wide = is_wide(maps) && reinterpret_cast<uintptr_t>(out) % (kQuad * sizeof(T)) == 0;
  return launch(kernel, grid, dim3(256), stream, maps, grad, coefficients, static_cast<T*>(out),
                wide);
}

}  // namespace

int64_t affine_invariant_loss_workspace(int64_t maps) { return 2 + 2 * maps; }

Cluster affine_invariant_loss_cluster(int64_t pixels, int regions) {
  int device = 0, most = 0, found = 0;
  cudaLaunchAttribute attribute;
  if (pixels <= int64_t{kMaxBlocks} * 65536 && cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess) {
    for (int blocks = 8; found == 0 && blocks <= kMaxBlocks; blocks *= 2) {
      const Cluster cluster = {blocks, kMaxThreads};
      const auto config = config_of(1, pixels, regions, cluster, nullptr, &attribute);
      const auto kernel = reinterpret_cast<const void*>(kernel_of(regions));
      int active = 0;
      // Always the device's limit: another thread may launch a larger map.
      if (config.dynamicSmemBytes <= static_cast<size_t>(most) &&
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most) ==
              cudaSuccess &&
          cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
              cudaSuccess &&
          cudaOccupancyMaxActiveClusters(&active, kernel, &config) == cudaSuccess && active > 0) {
        found = blocks;
      }
    }
  }
  cudaGetLastError();  // clears the error of a question
  return {found, kMaxThreads};
}

int affine_invariant_loss(const LossMaps& maps, float min_scale, const LossResults& results,
                          Cluster cluster, void* stream) {
  const auto clear = [&](void* words, int64_t count) {
    return cudaMemsetAsync(words, 0, count * sizeof(int32_t), static_cast<cudaStream_t>(stream));
  };
  if (maps.maps == 0 || maps.pixels == 0) {
    const int64_t count = maps.maps * maps.region_count() * kCoefficients;
    if (const cudaError_t error = count > 0 ? clear(results.coefficients, count) : cudaSuccess) {
      return error;
    }
    return clear(results.loss, 1);
  }
  // The counter of finished maps.
  if (const cudaError_t error = clear(results.workspace, 1)) return error;
  cudaLaunchAttribute attribute;
  const auto config = config_of(maps.maps, maps.pixels, maps.region_count(), cluster, stream,
                                &attribute);
  const cudaError_t launched =
      cudaLaunchKernelEx(&config, kernel_of(maps.region_count()), maps, min_scale, results,
                         per_block_of(maps.pixels, cluster.blocks), is_wide(maps));
  if (launched != cudaSuccess) cudaGetLastError();
  return launched;
}

int affine_invariant_loss_backward(const LossMaps& maps, const float* grad,
                                   const float* coefficients, void* out, void* stream) {
  if (maps.maps == 0 || maps.pixels == 0) return cudaSuccess;
  return with_type(maps.dtypes[0], [&](auto type) {
    return run_backward<decltype(type)>(maps, grad, coefficients, out, stream);
  });
}

}  // namespace dafast::cuda
