// The affine-invariant loss on CUDA; its schemas are in cpu/affine_invariant_loss.cpp.
#ifdef DAFAST_CUDA
#define USE_CUDA  // PyTorch's header then declares how to get the current stream
#include "affine_invariant_loss.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "loss_maps.h"

namespace dafast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "affine_invariant_loss";

float* floats_of(const Tensor& x, const Tensor& like, int64_t count) {
  STD_TORCH_CHECK(!x.is_cpu() && x.get_device_index() == like.get_device_index() &&
                      x.is_contiguous() && x.numel() == count &&
                      x.scalar_type() == ScalarType::Float,
                  kOp, ": expected a contiguous float32 tensor of ", count, " elements");
  return const_cast<float*>(static_cast<const float*>(x.const_data_ptr()));
}

void check(int error) {
  STD_TORCH_CHECK(error == cudaSuccess, kOp, ": the launch failed: ",
                  cudaGetErrorString(static_cast<cudaError_t>(error)));
}

void* stream_of(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

void forward(const Tensor& prediction, const Tensor& target, std::optional<Tensor> mask,
             std::optional<Tensor> regions, double min_scale, Tensor loss, Tensor coefficients) {
  const LossMaps maps = loss_maps_of(prediction, target, mask, regions);
  const int count = maps.region_count();
  const torch::stable::accelerator::DeviceGuard guard(prediction.get_device_index());
  const cuda::Cluster cluster = cuda::affine_invariant_loss_cluster(maps.pixels, count);
  STD_TORCH_CHECK(cluster.blocks > 0, kOp, ": no cluster of this GPU keeps ", maps.pixels,
                  " pixels");
  // PyTorch's allocator reuses this memory only for later work on the same stream.
  const Tensor workspace = torch::stable::new_empty(
      prediction, {cuda::affine_invariant_loss_workspace(maps.maps)}, ScalarType::Int);
  const cuda::LossResults results = {
      floats_of(loss, prediction, 1),
      floats_of(coefficients, prediction, maps.maps * count * kCoefficients),
      static_cast<int32_t*>(workspace.mutable_data_ptr())};
  check(cuda::affine_invariant_loss(maps, static_cast<float>(min_scale), results, cluster,
                                    stream_of(prediction)));
}

void backward(const Tensor& grad, const Tensor& prediction, const Tensor& target,
              std::optional<Tensor> mask, std::optional<Tensor> regions,
              const Tensor& coefficients, Tensor out) {
  const LossMaps maps = loss_maps_of(prediction, target, mask, regions);
  STD_TORCH_CHECK(!out.is_cpu() && out.is_contiguous() && out.numel() == prediction.numel() &&
                      out.scalar_type() == prediction.scalar_type(),
                  kOp, ": expected a contiguous tensor for out, in the dtype of the prediction");
  const torch::stable::accelerator::DeviceGuard guard(prediction.get_device_index());
  const float* const factors =
      floats_of(coefficients, prediction, maps.maps * maps.region_count() * kCoefficients);
  check(cuda::affine_invariant_loss_backward(maps, floats_of(grad, prediction, 1), factors,
                                             out.mutable_data_ptr(), stream_of(prediction)));
}

}  // namespace

int affine_invariant_loss_cluster(int device, int64_t pixels, int regions) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  return cuda::affine_invariant_loss_cluster(pixels, regions).blocks;
}

}  // namespace dafast

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CUDA, m) {
  m.impl("affine_invariant_loss", TORCH_BOX(&dafast::forward));
  m.impl("affine_invariant_loss_backward", TORCH_BOX(&dafast::backward));
}
#endif
