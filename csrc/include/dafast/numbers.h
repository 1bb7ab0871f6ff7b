// 16-bit floating point without types of torch or CUDA in the interface, and packs of 16 bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "dafast/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace dafast {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

// The dtype of a tensor. The values are not used outside of csrc/ and its tests.
enum class Dtype { float32, float16, bfloat16, uint8, uint16 };

DAFAST_HOST_DEVICE inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

DAFAST_HOST_DEVICE inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

DAFAST_HOST_DEVICE inline float to_float(float value) { return value; }
DAFAST_HOST_DEVICE inline float to_float(uint8_t value) { return static_cast<float>(value); }

DAFAST_HOST_DEVICE inline float to_float(bfloat16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

DAFAST_HOST_DEVICE inline float to_float(float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // A product moves the exponent, and turns denormal numbers into normal ones.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const float scaled = float_of(static_cast<uint32_t>(value.bits & 0x7fff) << 13) *
                       float_of(0x77800000);  // 2^112
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;  // infinity, NaN
  return float_of(bits_of(scaled) | special | sign);
#endif
}

// Rounds to nearest, ties to even; keeps NaN.
template <typename T>
DAFAST_HOST_DEVICE inline T from_float(float value);

template <>
DAFAST_HOST_DEVICE inline float from_float<float>(float value) {
  return value;
}

template <>
DAFAST_HOST_DEVICE inline bfloat16 from_float<bfloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
#endif
}

template <>
DAFAST_HOST_DEVICE inline float16 from_float<float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal results: the exponent rebiased from 127 to 15, 13 digits rounded away.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Denormal results (under 2^-14): adding 0.5 moves the digits to the end of the mantissa.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  uint32_t result = magnitude < 0x38800000 ? denormal : normal;
  result = magnitude >= 0x477ff000 ? 0x7c00u : result;  // rounds to 2^16 or more
  result = magnitude > 0x7f800000 ? 0x7e00u : result;
  return {static_cast<uint16_t>(result | ((bits >> 16) & 0x8000))};
#endif
}

// Elements of one 16-byte access.
template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace dafast
