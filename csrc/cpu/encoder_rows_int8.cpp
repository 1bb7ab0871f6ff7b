// The rows of a transformer block behind attention, in int8 on the CPU: projection, residual, norm,
// MLP, residual, and then the norm and the first layer of what follows. A group of rows passes
// through all of them while it is in the caches; threads join once. See encoder_rows_int8_kernels.h.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <memory>

#include "../registry.h"
#include "int8_layer.h"
#include "parameters.h"
#include "pieces.h"

namespace dafast::cpu {

// Tensors (M, ...), contiguous. `tap` or `next` may be null.
struct EncoderRows {
  int64_t rows, channels, hidden;
  const float* x;
  const void* mixed;  // result of attention
  float* stream;
  void* tap;
  void* next;
  bool bfloat16;  // of mixed, tap and next; otherwise float32
  Int8Layer proj, fc1, fc2, qkv;
  const float *ls1, *ls2;
  RowNorm norm2, tap_norm, next_norm;
};

inline int64_t widest(const EncoderRows& call) {
  return call.hidden > call.channels ? call.hidden : call.channels;
}

// Floats and levels for a group of rows, and one row.
inline int64_t encoder_scratch(const EncoderRows& call) {
  const int64_t floats = kInt8Rows * (call.hidden + call.channels) + widest(call);
  return floats * 4 + kInt8Rows * (call.hidden + call.channels) * kLevelBytes;
}

// Up to kInt8Rows rows from `row` on.
using EncoderGroup = void (*)(const EncoderRows& call, int64_t row, int64_t rows,
                              std::byte* scratch);

}  // namespace dafast::cpu

#define DAFAST_KERNELS "encoder_rows_int8_kernels.h"
#define DAFAST_KERNELS_FOR_VNNI
#define DAFAST_KERNELS_FOR_DOTPROD
#define DAFAST_KERNELS_FOR_AMX
#include "each_isa.h"

namespace dafast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "encoder_rows_int8";

// x and stream (M, C) float32; mixed and tap (M, C), next (M, N), float32 or bfloat16; `tap` and
// `next` are empty where they are not wanted. The parameters are in the order of
// dafast/ops/encoder_rows_int8.py.
void encoder_rows_int8(const Tensor& x, const Tensor& mixed, const Tensor& packed,
                       const Tensor& sums, const Tensor& vectors, int64_t hidden, Tensor stream,
                       Tensor tap, Tensor next) {
  const int64_t rows = x.size(0), channels = x.size(1);
  const bool bfloat16 = mixed.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous() &&
                      stream.scalar_type() == ScalarType::Float && stream.is_contiguous() &&
                      stream.numel() == x.numel() && channels % 16 == 0 && hidden % 16 == 0,
                  kOp, ": expected float32 x and stream (M, C), C and hidden multiples of 16");
  for (const Tensor* t : {&mixed, static_cast<const Tensor*>(&tap),
                          static_cast<const Tensor*>(&next)}) {
    STD_TORCH_CHECK((bfloat16 || t->scalar_type() == ScalarType::Float) && t->is_contiguous() &&
                        t->scalar_type() == mixed.scalar_type(),
                    kOp, ": expected mixed, tap and next in one dtype");
  }
  STD_TORCH_CHECK(mixed.numel() == x.numel() && (tap.numel() == 0 || tap.numel() == x.numel()),
                  kOp, ": expected mixed and tap like x");
  if (rows == 0) return;
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Char &&
                      sums.scalar_type() == ScalarType::Int &&
                      vectors.scalar_type() == ScalarType::Float,
                  kOp, ": expected int8, int32 and float32 parameters");
  Parameters<int8_t> weights(packed, kOp);
  Parameters<int32_t> totals(sums, kOp);
  Parameters<float> floats(vectors, kOp);
  const auto layer = [&](int64_t depth, int64_t columns) {
    const int64_t bytes = round_up(columns, kInt8Columns) * round_up(depth, kInt8Depth);
    const int8_t* const values = weights.take(bytes);
    const int32_t* const total = totals.take(columns);
    const float* const scales = floats.take(columns);
    return Int8Layer{depth, columns, values, total, scales, floats.take(columns)};
  };
  EncoderRows call{};
  call.rows = rows, call.channels = channels, call.hidden = hidden;
  call.x = static_cast<const float*>(x.const_data_ptr());
  call.mixed = mixed.const_data_ptr();
  call.stream = static_cast<float*>(stream.mutable_data_ptr());
  call.bfloat16 = bfloat16;
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
    call.next = next.mutable_data_ptr();
    call.next_norm = floats.norm(channels);
    call.qkv = layer(channels, next.numel() / rows);
  }
  weights.finish(), totals.finish(), floats.finish();
  const EncoderGroup group = DAFAST_FOR_ISA(encoder_group);
  STD_TORCH_CHECK(group, kOp, ": this CPU has neither AVX2 nor ARM's dot products");
  for_ranges(rows, kInt8Unit, kInt8Rows, [&](Ranges& ranges) {
    const std::unique_ptr<std::byte[]> scratch(
        new std::byte[static_cast<size_t>(encoder_scratch(call))]);
    int64_t begin, end;
    while (ranges.take(begin, end)) group(call, begin, end - begin, scratch.get());
  });
}

}  // namespace
}  // namespace dafast::cpu

DAFAST_OP(encoder_rows_int8, m) {
  m.def(
      "encoder_rows_int8(Tensor x, Tensor mixed, Tensor packed, Tensor sums, Tensor vectors,"
      " int hidden, Tensor(a!) stream, Tensor(b!) tap, Tensor(c!) next) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dafast_C, CPU, m) {
  m.impl("encoder_rows_int8", TORCH_BOX(&dafast::cpu::encoder_rows_int8));
}
