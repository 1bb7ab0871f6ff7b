// 16 floats, or 16 integers of 32 bits, in one register of AVX-512, two of AVX2 or four of NEON, for
// kernels files. Masks are the first places of a vector.

#if defined(DAFAST_IN_AVX512)

using Floats16 = __m512;
using Ints16 = __m512i;
using Level = uint8_t;  // what products read of a value that was rounded to 256 steps

inline Floats16 all(float x) { return _mm512_set1_ps(x); }
inline Ints16 all(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats16 floats_at(const float* from) { return _mm512_loadu_ps(from); }
inline Ints16 ints_at(const int32_t* from) { return _mm512_loadu_si512(from); }
inline void put(float* to, Floats16 x) { _mm512_storeu_ps(to, x); }
inline void put(int32_t* to, Ints16 x) { _mm512_storeu_si512(to, x); }

inline Floats16 add(Floats16 a, Floats16 b) { return _mm512_add_ps(a, b); }
inline Floats16 sub(Floats16 a, Floats16 b) { return _mm512_sub_ps(a, b); }
inline Floats16 mul(Floats16 a, Floats16 b) { return _mm512_mul_ps(a, b); }
inline Floats16 div(Floats16 a, Floats16 b) { return _mm512_div_ps(a, b); }
inline Floats16 fmadd(Floats16 a, Floats16 b, Floats16 c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats16 min(Floats16 a, Floats16 b) { return _mm512_min_ps(a, b); }  // b if one is NaN
inline Floats16 max(Floats16 a, Floats16 b) { return _mm512_max_ps(a, b); }
inline Floats16 root(Floats16 x) { return _mm512_sqrt_ps(x); }
inline Floats16 nearest(Floats16 x) { return _mm512_roundscale_ps(x, 0x08); }  // no exceptions
inline Ints16 add(Ints16 a, Ints16 b) { return _mm512_add_epi32(a, b); }
inline Ints16 sub(Ints16 a, Ints16 b) { return _mm512_sub_epi32(a, b); }
inline Ints16 mul(Ints16 a, Ints16 b) { return _mm512_mullo_epi32(a, b); }
inline Ints16 max(Ints16 a, Ints16 b) { return _mm512_max_epi32(a, b); }

inline Ints16 rounded(Floats16 x) { return _mm512_cvtps_epi32(x); }
inline int32_t rounded(float x) { return _mm_cvtss_si32(_mm_set_ss(x)); }
inline Floats16 to_floats(Ints16 x) { return _mm512_cvtepi32_ps(x); }
// Bits of the magnitudes: as integers they compare like these, and NaN is the largest.
inline Ints16 magnitudes(Floats16 x) { return _mm512_castps_si512(_mm512_abs_ps(x)); }

inline float total(Floats16 x) { return _mm512_reduce_add_ps(x); }
inline float least(Floats16 x) { return _mm512_reduce_min_ps(x); }
inline float most(Floats16 x) { return _mm512_reduce_max_ps(x); }
inline int32_t total(Ints16 x) { return _mm512_reduce_add_epi32(x); }
inline int32_t most(Ints16 x) { return _mm512_reduce_max_epi32(x); }

// 2^floor(x) y
inline Floats16 scaled(Floats16 y, Floats16 x) { return _mm512_scalef_ps(y, x); }
inline Floats16 fraction(Floats16 x) { return _mm512_reduce_ps(x, 0x09); }  // x - floor(x)

using Mask16 = __mmask16;
inline Mask16 first_of(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << (count < 0 ? 0 : count)) - 1);
}
// The others are 0.
inline Floats16 only(Mask16 mask, Floats16 x) { return _mm512_maskz_mov_ps(mask, x); }
// The others are `other`.
inline Floats16 only(Mask16 mask, Floats16 x, Floats16 other) {
  return _mm512_mask_mov_ps(other, mask, x);
}
inline Floats16 floats_at(const float* from, Mask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
inline Ints16 ints_at(const int32_t* from, Mask16 mask) {
  return _mm512_maskz_loadu_epi32(mask, from);
}
inline void put(float* to, Floats16 x, Mask16 mask) { _mm512_mask_storeu_ps(to, mask, x); }

// Of 0 or more; more than 255 becomes 255.
inline void put_levels(Level* to, Ints16 x, Mask16 mask) {
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(x));
}
inline void put_levels(Level* to, Ints16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(x));
}
// Of -128 to 127.
inline void put_bytes(int8_t* to, Ints16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}

// x << 8 | the low byte of y
inline Ints16 append_byte(Ints16 x, Ints16 y) {
  return _mm512_or_si512(_mm512_slli_epi32(x, 8), _mm512_and_si512(y, _mm512_set1_epi32(255)));
}

inline Floats16 widened(const uint16_t* from, Mask16 mask) {
  const __m256i half = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// Rounds to nearest, ties to even; NaN keeps its upper bits and becomes quiet.
inline void put_bfloat16(uint16_t* to, Floats16 x, Mask16 mask) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i result = _mm512_srli_epi32(_mm512_mask_mov_epi32(near, nan, quiet), 16);
  _mm256_mask_storeu_epi16(to, mask, _mm512_cvtepi32_epi16(result));
}

#elif defined(DAFAST_IN_AVX2)
#include "vectors16_avx2.h"
#else
#include "vectors16_neon.h"
#endif

inline Floats16 load(const void* x, bool bfloat16, int64_t index, Mask16 mask) {
  if (!bfloat16) return floats_at(static_cast<const float*>(x) + index, mask);
  return widened(static_cast<const uint16_t*>(x) + index, mask);
}

inline Floats16 load(const void* x, bool bfloat16, int64_t index) {
  return load(x, bfloat16, index, first_of(16));
}

inline void store(Floats16 value, void* out, bool bfloat16, int64_t index, Mask16 mask) {
  if (!bfloat16) return put(static_cast<float*>(out) + index, value, mask);
  put_bfloat16(static_cast<uint16_t*>(out) + index, value, mask);
}

inline float float_from_bits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 1 / x where x > 0, at most the largest float; 0 otherwise, also for NaN and infinity.
inline float inverse_of(float x) {
  if (!(x > 0.0f && x <= 3.40282347e38f)) return 0.0f;
  const float inverse = 1.0f / x;
  return inverse <= 3.40282347e38f ? inverse : 3.40282347e38f;
}
