// The rows of a transformer block behind attention, in float32 or bfloat16 on the CPU: projection,
// residual, norm, MLP, residual, and then the norm and the first layer of what follows. A group of
// rows passes through all of them while it is in the caches; threads join once. See
// encoder_rows_kernels.h, and encoder_rows_int8.cpp for int8.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <memory>

#include "../registry.h"
#include "parameters.h"
#include "pieces.h"
#include "tensors.h"
#include "weights_float.h"

namespace dafast::cpu {

constexpr int64_t kHiddenPart = 384;  // columns of the MLP that a group computes at once

// Tensors (M, ...), contiguous. `tap` or `next` may be null.
struct EncoderRowsFloat {
  int64_t rows, channels, hidden;  // multiples of kColumns
  const float* x;
  const void* mixed;  // result of attention
  float* stream;
  void* tap;
  void* next;
  Dtype dtype;  // of mixed, tap and next
  FloatLayer proj, fc1, fc2, qkv;
  const float *ls1, *ls2;
  RowNorm norm2, tap_norm, next_norm;
};

// Floats for a group of rows, and one row.
inline int64_t encoder_floats(const EncoderRowsFloat& call) {
  return kRowGroup * (3 * call.channels + kHiddenPart) + call.channels;
}

using EncoderGroup = void (*)(const EncoderRowsFloat& call, int64_t row, int64_t rows, float* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "encoder_rows_kernels.h"
#define DAFAST_KERNELS_FOR_BF16
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "encoder_rows";

// x and stream (M, C) float32; mixed and tap (M, C), next (M, N), of one dtype; `tap` and `next` are
// empty where they are not wanted. The parameters are in the order of dafast/ops/encoder_rows.py.
void encoder_rows(const Tensor& x, const Tensor& mixed, const Tensor& packed,
                  const Tensor& vectors, int64_t hidden, Tensor stream, Tensor tap, Tensor next) {
  const int64_t rows = x.size(0), channels = x.size(1);
  float_data_of(x, rows * channels, kOp);
  float_data_of(vectors, vectors.numel(), kOp);
  STD_TORCH_CHECK(channels % kColumns == 0 && hidden % kColumns == 0, kOp,
                  ": expected multiples of ", kColumns, " channels");
  for (const Tensor* t : {&mixed, static_cast<const Tensor*>(&tap),
                          static_cast<const Tensor*>(&next)}) {
    STD_TORCH_CHECK(t->is_contiguous() && t->scalar_type() == mixed.scalar_type(), kOp,
                    ": expected mixed, tap and next in one dtype");
  }
  STD_TORCH_CHECK(mixed.numel() == x.numel() && (tap.numel() == 0 || tap.numel() == x.numel()),
                  kOp, ": expected mixed and tap like x");
  if (rows == 0) return;
  const bool pairs = packed.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(pairs || packed.scalar_type() == ScalarType::Float, kOp,
                  ": expected weights from pack_linear");
  Parameters<std::byte> weights(packed, kOp, pairs ? 2 : 4);
  Parameters<float> floats(vectors, kOp);
  const auto layer = [&](int64_t depth, int64_t columns) {
    const std::byte* const at = weights.take(depth * columns * (pairs ? 2 : 4));
    return FloatLayer{depth, columns, reinterpret_cast<const float*>(at), floats.take(columns)};
  };
  EncoderRowsFloat call{};
  call.rows = rows, call.channels = channels, call.hidden = hidden;
  call.x = static_cast<const float*>(x.const_data_ptr());
  call.mixed = mixed.const_data_ptr();
  call.stream = float_data_of(stream, x.numel(), kOp);
  call.dtype = float_dtype_of(mixed, kOp);
  call.proj = layer(channels, channels);
  call.ls1 = floats.take(channels);
  call.norm2 = floats.norm(channels);
  call.fc1 = layer(channels, hidden);
  call.fc2 = layer(hidden, channels);
  call.ls2 = floats.take(channels);
  if (tap.numel()) {
    call.tap = tap.mutable_data_ptr();
    call.tap_norm = floats.norm(channels);
  }
  if (next.numel()) {
    STD_TORCH_CHECK(next.numel() % (rows * kColumns) == 0, kOp, ": expected multiples of ",
                    kColumns, " channels");
    call.next = next.mutable_data_ptr();
    call.next_norm = floats.norm(channels);
    call.qkv = layer(channels, next.numel() / rows);
  }
  weights.finish(), floats.finish();
  const EncoderGroup group =
      pairs ? DAFAST_FOR_ISA(encoder_group_pairs) : DAFAST_FOR_ISA(encoder_group);
  STD_TORCH_CHECK(group, kOp, ": weights in bfloat16 need AVX-512 with BF16");
  for_ranges(rows, kRowLeast, kRowGroup, [&](Ranges& ranges) {
    const std::unique_ptr<float[]> scratch(
        new float[static_cast<size_t>(encoder_floats(call))]);
    int64_t begin, end;
    while (ranges.take(begin, end)) group(call, begin, end - begin, scratch.get());
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(encoder_rows, m) {
  m.def(
      "encoder_rows(Tensor x, Tensor mixed, Tensor packed, Tensor vectors, int hidden,"
      " Tensor(a!) stream, Tensor(b!) tap, Tensor(c!) next) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("encoder_rows", TORCH_BOX(&dafast::cpu::encoder_rows));
}
