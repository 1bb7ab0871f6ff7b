// The tensors of the affine-invariant loss, checked and described for its kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "cpu/tensors.h"
#include "dafast/losses.h"

namespace dafast {

inline LossMaps loss_maps_of(const torch::stable::Tensor& prediction,
                             const torch::stable::Tensor& target,
                             const std::optional<torch::stable::Tensor>& mask,
                             const std::optional<torch::stable::Tensor>& regions) {
  using torch::stable::Tensor;
  static constexpr const char* op = "affine_invariant_loss";
  LossMaps maps{};
  maps.maps = prediction.size(0);
  maps.pixels = prediction.size(1) * prediction.size(2);
  const Tensor* tensors[4] = {&prediction, &target, mask ? &*mask : nullptr,
                              regions ? &*regions : nullptr};
  for (int i = 0; i < 4; ++i) {
    if (!tensors[i]) continue;
    const Tensor& x = *tensors[i];
    STD_TORCH_CHECK(x.is_cpu() == prediction.is_cpu() &&
                        x.get_device_index() == prediction.get_device_index() && x.dim() == 3 &&
                        x.size(0) == maps.maps && x.size(1) == prediction.size(1) &&
                        x.size(2) == prediction.size(2),
                    op, ": expected tensors (B, H, W) of one shape on one device");
    STD_TORCH_CHECK(maps.pixels == 0 || ((x.stride(2) == 1 || x.size(2) == 1) &&
                                         (x.stride(1) == x.size(2) || x.size(1) == 1)),
                    op, ": expected dense maps");
    maps.strides[i] = x.stride(0);
  }
  const auto bytes = [](const std::optional<Tensor>& x) {
    STD_TORCH_CHECK(!x || x->scalar_type() == torch::headeronly::ScalarType::Bool, op,
                    ": expected mask and regions in bool");
    // An empty tensor is present, but may have no memory.
    static const uint8_t nothing = 0;
    if (!x) return static_cast<const uint8_t*>(nullptr);
    return x->numel() > 0 ? static_cast<const uint8_t*>(x->const_data_ptr()) : &nothing;
  };
  maps.mask = bytes(mask);
  maps.regions = bytes(regions);
  for (int i = 0; i < 2; ++i) {
    maps.values[i] = tensors[i]->const_data_ptr();
    maps.dtypes[i] = cpu::float_dtype_of(*tensors[i], op);
  }
  return maps;
}

}  // namespace dafast
