// Sequences that are packed into one tensor, for the ops of attention.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dafast::cpu {

// The first rows of all sequences, and the number of rows.
inline std::vector<int64_t> ends_of(const torch::stable::Tensor& cu_seqlens, int64_t rows,
                                    const char* op) {
  STD_TORCH_CHECK(cu_seqlens.is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.size(0) > 0 &&
                      cu_seqlens.scalar_type() == torch::headeronly::ScalarType::Int,
                  op, ": expected cu_seqlens in int32 (S + 1) on the CPU");
  const auto* from = static_cast<const int32_t*>(cu_seqlens.const_data_ptr());
  std::vector<int64_t> ends(static_cast<size_t>(cu_seqlens.size(0)));
  for (size_t i = 0; i < ends.size(); ++i) ends[i] = from[i * cu_seqlens.stride(0)];
  STD_TORCH_CHECK(ends.front() == 0 && ends.back() == rows &&
                      std::is_sorted(ends.begin(), ends.end()),
                  op, ": cu_seqlens must rise from 0 to the number of rows");
  return ends;
}

}  // namespace dafast::cpu
